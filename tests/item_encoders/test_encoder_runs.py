"""Whole runs with encoders of text: without an ID table, with rows on the host, over binary losses."""

import numpy as np
import pytest

from spectran_jax.training.run import train_and_report


@pytest.mark.parametrize(
    "options",
    [
        {"item_encoder": "svd", "fusion": "none", "loss": "bce"},  # an encoder without a parameter
        {"item_encoder": "mlp", "fusion": "none", "loss": "gbce", "spectrum_memory": "disk", "weight_decay": 0.01},
        {"item_encoder": "moe", "loss": "softmax", "precision": "bfloat16"},
        {"item_encoder": "whiten", "fusion": "gate", "spectrum_memory": "host"},
        {"item_encoder": "alphafuse", "spectrum_memory": "disk", "table_dtype": "bfloat16"},
        {"item_encoder": "llmesr", "spectrum_memory": "host", "precision": "bfloat16", "spectrum_dtype": "int8"},
        {"item_encoder": "rlmrec", "alignment": "generative", "loss": "softmax"},
        {"item_encoder": "llminit", "table_dtype": "bfloat16", "spectrum_dtype": "int8"},
    ],
    ids=lambda options: options["item_encoder"],
)
def test_a_run(tiny_config, tmp_path, no_report, options):
    config = tiny_config.replace(adapter_width=8, experts=2, epochs=1, **options)
    metrics = train_and_report(config, tmp_path)
    assert 0 < metrics["test"]["hr@50"] <= 1
    assert np.isfinite(metrics["valid"]["ndcg@10"])
    assert (metrics["parameters"]["item_encoder"] == 0) == (options["item_encoder"] == "svd")
