"""What is said of an adapter's W, on matrices whose answer is known."""

import numpy as np
import pytest

from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.studies.attention import FILE, Adapter, reach, read_adapter
from spectran_jax.studies.spectra import read_history, reading_at
from spectran_jax.training.run import train_and_report
from spectran_jax.training.workdir import write_json

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


def test_an_adapter_that_was_kept_is_not_restored_again(tmp_path):
    np.savez(tmp_path / FILE, sigma=SIGMA, weights=np.eye(4, 10))
    found = read_adapter(tmp_path)
    assert np.array_equal(found.weights, np.eye(4, 10))
    assert found.attention is found.diagonal is found.taylor is None


def test_the_adapter_of_a_real_run_is_the_one_that_validation_chose(tiny_config, tmp_path):
    """Its tail and its live share are those that the log has at the best step."""
    config = tiny_config.replace(epochs=2, evaluate="valid", taylor_order=1)
    metrics = train_and_report(config, tmp_path)
    found = read_adapter(tmp_path)
    assert (tmp_path / FILE).exists()
    history = read_history(tmp_path)
    at_best = {
        key: reading_at(history, key, metrics["train"]["best_step"]) for key in ("tail_energy", "attention_live")
    }
    assert reach(found).tail == pytest.approx(at_best["tail_energy"], rel=1e-4)
    assert reach(found).live == pytest.approx(at_best["attention_live"], rel=1e-4)
    np.testing.assert_allclose(found.diagonal, found.taylor[0] + found.taylor[1] * found.sigma[:16], rtol=1e-5)


def test_runs_of_other_encoders_are_refused(tmp_path):
    write_json(tmp_path / "config.json", Config().replace(item_encoder="svd").to_dict())
    with pytest.raises(InputError, match="is a run of --item_encoder=svd, not of spectran"):
        read_adapter(tmp_path)
