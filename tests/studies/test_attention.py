"""What is said of an adapter's W, on matrices whose answer is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax.config import Config
from spectran_jax.digest import params_digest
from spectran_jax.errors import InputError
from spectran_jax.studies import attention
from spectran_jax.studies.attention import FILE, Adapter, reach, read_adapter
from spectran_jax.training.checkpoints import Checkpoints
from spectran_jax.training.programs import build_programs
from spectran_jax.training.setup import prepare
from spectran_jax.writing import write_json

SIGMA = np.linspace(1, 0.1, 10).astype(np.float32)


def test_svd_reads_one_component_a_dimension():
    found = reach(Adapter(SIGMA, np.eye(4, 10)))
    assert found.tail == 0
    assert found.breadth == pytest.approx(1)
    assert found.half == 2
    assert found.live is None


def test_even_attention_reads_everything():
    attention = np.ones((4, 10))
    attention[0, 3:] = 0
    found = reach(Adapter(SIGMA, np.full((4, 10), -2.0), attention))
    assert found.tail == pytest.approx(0.6)
    assert found.breadth == pytest.approx(10)
    assert found.half == 5
    assert found.live == pytest.approx(33 / 40)


def test_breadth_is_the_mean_over_rows():
    weights = np.zeros((2, 8))
    weights[0, 7] = 3.0
    weights[1, :4] = 1.0
    found = reach(Adapter(SIGMA[:8], weights))
    assert found.breadth == pytest.approx((1 + 4) / 2)
    assert found.half == 8  # 9 of 13 units of energy lie in the last component


def test_an_adapter_without_attention_is_kept(tmp_path, monkeypatch):
    restored = []
    monkeypatch.setattr(
        attention, "_restore", lambda folder, digest: restored.append(1) or Adapter(SIGMA, np.eye(4, 10))
    )
    for _ in range(2):
        found = read_adapter(tmp_path, "d")
        assert np.array_equal(found.weights, np.eye(4, 10))
        assert found.attention is found.diagonal is found.taylor is None
    assert len(restored) == 1


def test_the_adapter_of_a_run_is_that_of_its_best_parameters(tiny_config, tmp_path):
    """A checkpoint of known parameters, as a run leaves it: W, phi and p as NumPy has them from the parameters."""
    config = tiny_config.replace(item_encoder="spectran", taylor_order=1, spectral_norm="rows", spectral_power=0.0)
    setup = prepare(config)
    params = build_programs(setup, 1).init().params
    adapter = params["item_encoder"]["adapter"]
    adapter["taylor"] = adapter["taylor"] + jnp.asarray([0.25, -0.5])
    write_json(tmp_path / "config.json", config.to_dict())
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save_best(5, params, {"data": setup.inputs_digest})
    checkpoints.close()

    found = read_adapter(tmp_path, params_digest(params))
    assert (tmp_path / FILE).exists()
    query, key, raw = (np.asarray(adapter[name], np.float64) for name in ("query", "key", "threshold"))
    z = query @ key.T / np.sqrt(query.shape[1])
    phi = np.sign(z) * np.maximum(np.abs(z) - np.log1p(np.exp(raw)), 0)
    np.testing.assert_allclose(found.attention, phi, atol=1e-6)
    np.testing.assert_allclose(found.sigma, setup.spectrum.sigma)
    np.testing.assert_allclose(found.diagonal, 1.25 - 0.5 * found.sigma[: config.encoder.dimension], rtol=1e-5)
    whole = phi.copy()
    whole[np.arange(len(phi)), np.arange(len(phi))] += found.diagonal
    np.testing.assert_allclose(found.weights, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)


def test_runs_of_other_encoders_are_refused(tmp_path):
    write_json(tmp_path / "config.json", Config().replace(item_encoder="svd").to_dict())
    with pytest.raises(InputError, match="is a run of --item_encoder=svd, not of spectran"):
        read_adapter(tmp_path, "d")
