"""Micro-batches on several devices: stopped and gone on with, and in bfloat16."""

import jax
import numpy as np
import pytest
from updates import Run

from spectran_jax.digest import params_digest
from spectran_jax.errors import Interrupted
from spectran_jax.signals import StopRequest
from spectran_jax.training import loop
from spectran_jax.training.consensus import StopVote
from spectran_jax.training.setup import prepare

MICRO = {"mesh": "data:4,model:2", "micro_batches": 2, "item_encoder": "svd"}


def test_a_run_that_is_stopped_ends_as_if_it_had_not_been(tiny_config, tmp_path, monkeypatch):
    setup = prepare(tiny_config.replace(**MICRO, epochs=2))
    assert len(setup.exchange.lists) == 3  # the pieces are there

    def train(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return loop.train(setup, tmp_path / name, StopRequest())

    with monkeypatch.context() as patch:
        patch.setattr(StopVote, "reached", lambda self, step, following: "SIGTERM" if step == 3 else None)
        with pytest.raises(Interrupted, match="saved step 3"):
            train("stopped")
    (straight, losses), (resumed, others) = (
        (found, [line["loss"] for line in found.lines if line["kind"] == "train"])
        for found in map(train, ("straight", "stopped"))
    )
    assert params_digest(jax.device_get(resumed.params)) == params_digest(jax.device_get(straight.params))
    assert others == losses
    assert resumed.best_step == straight.best_step


def test_losses_in_bfloat16_stay_near_those_in_float32(tiny_config):
    """Gradients of the pieces are added up in float32, whatever they are computed in."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        run = Run(tiny_config.replace(**MICRO, precision=precision, dropout=0.0))
        losses[precision] = np.array([metrics["loss"] for metrics in run.steps(15)])
    assert (losses["bfloat16"] != losses["float32"]).any()
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)
    assert losses["bfloat16"][-3:].mean() < 0.9 * losses["bfloat16"][:3].mean()
