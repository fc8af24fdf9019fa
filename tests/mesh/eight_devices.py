"""Meshes of eight devices, which a process must ask for before JAX starts: `tests/test_mesh.py` runs what is here."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from spectran_jax.training.partitioning import AXES

SHAPES = ((8, 1), (4, 2), (2, 4), (1, 8))


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def mesh(request):
    return Mesh(np.asarray(jax.devices()).reshape(request.param), AXES)
