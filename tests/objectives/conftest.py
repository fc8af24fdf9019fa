"""The case that the losses share."""

import pytest
from objective_cases import make_case


@pytest.fixture
def case():
    return make_case()
