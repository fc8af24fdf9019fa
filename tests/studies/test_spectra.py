"""Measures of collapse against closed forms."""

import numpy as np
import pytest

from spectran_jax.studies.spectra import collapse


def test_equal_values_fill_every_dimension_and_one_value_fills_one():
    np.testing.assert_allclose(collapse([2.0] * 8), [8, 8, 1 / 8])
    np.testing.assert_allclose(collapse([5.0, 0, 0, 0]), [1, 1, 1])
    assert collapse([0.0, 0.0]) == (0, 0, 0)


def test_a_geometric_spectrum_has_its_closed_form():
    """Values q^j: abundance (1 - q^n) / (1 - q); entropy log Z - E[j] log q, from the sums of the series."""
    q, n = 0.6, 12
    total = (1 - q**n) / (1 - q)
    mean = sum(j * q**j for j in range(n)) / total
    found = collapse([7 * q**j for j in range(n)])
    assert found.information_abundance == pytest.approx(total)
    assert found.effective_rank == pytest.approx(np.exp(np.log(total) - mean * np.log(q)))
    assert found.top_energy == pytest.approx((1 - q**2) / (1 - q ** (2 * n)))


def test_order_and_unit_do_not_matter():
    values = np.random.default_rng(0).random(9)
    np.testing.assert_allclose(collapse(values), collapse(100 * values[::-1]))
