"""Whole runs, with every encoder and options that they share out: any of them may meet any other."""

import numpy as np
import pytest

from spectran_jax.training.run import train_and_report


@pytest.mark.parametrize(
    "options",
    [
        # An encoder without a parameter.
        {"item_encoder": "svd", "fusion": "none", "loss": "bce", "spectrum_dtype": "bfloat16", "split": "temporal"},
        {"item_encoder": "mlp", "fusion": "none", "loss": "gbce", "spectrum_memory": "disk", "weight_decay": 0.01},
        {"item_encoder": "moe", "loss": "softmax", "precision": "bfloat16", "learn_scale": True},
        {
            "item_encoder": "whiten",
            "fusion": "gate",
            "spectrum_memory": "host",
            "optimizer": "adagrad",
            "filter_seen": True,
            "max_steps": 3,
        },
        {"item_encoder": "alphafuse", "spectrum_memory": "disk", "table_dtype": "bfloat16"},
        {"item_encoder": "llmesr", "spectrum_memory": "host", "precision": "bfloat16", "spectrum_dtype": "int8"},
        {
            "item_encoder": "rlmrec",
            "alignment": "generative",
            "loss": "sampled_softmax",
            "sampling": "popularity",
            "mask_negatives": "history",
            "table_updates": "dense",
        },
        {"item_encoder": "llminit", "table_dtype": "bfloat16", "spectrum_dtype": "int8"},
        {
            "item_encoder": "spectran",
            "precision": "bfloat16",
            "table_dtype": "bfloat16",
            "spectrum_dtype": "int8",
            "spectrum_memory": "disk",
            "table_optimizer": "rowwise_adagrad",
            "packing": False,
            "schedule": "cosine",
            "weight_decay": 0.01,
            "spectral_lr_multiplier": 0.1,
        },
    ],
    ids=lambda options: options["item_encoder"],
)
def test_a_run(tiny_config, tmp_path, no_report, options):
    config = tiny_config.replace(adapter_width=8, experts=2, epochs=1, **options)
    metrics = train_and_report(config, tmp_path)
    assert 0 < metrics["test"]["hr@50"] <= 1
    assert np.isfinite(metrics["valid"]["ndcg@10"])
    assert metrics["train"]["steps"] == options.get("max_steps", metrics["train"]["steps"])
    assert {"total", "item_encoder", "backbone"} <= set(metrics["parameters"])
    assert (metrics["parameters"]["item_encoder"] == 0) == (options["item_encoder"] == "svd")
    assert len(metrics["digest"]) == len(metrics["protocol"]) == 64
