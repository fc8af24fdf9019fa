"""A report to test on: a small run with every part there is."""

import numpy as np

from spectran_jax.config import Config
from spectran_jax.report import (
    Recommended,
    ReportData,
    UserExample,
)


def sample(d: int = 8, r: int = 24) -> ReportData:
    generator = np.random.default_rng(0)
    sigma = np.arange(1, r + 1) ** -0.7
    attention = generator.normal(size=(d, r))
    attention = np.sign(attention) * np.maximum(np.abs(attention) - 1.5, 0)
    taylor = np.array([1.1, -0.4, 0.2])
    history = []
    for i in range(1, 6):
        history.append({"kind": "train", "step": 10 * i, "epoch": i, "loss": 5.0 / i, "examples_per_second": 99.0})
        history.append(
            {"kind": "valid", "step": 10 * i, "epoch": i, "ndcg@20": 0.01 * min(i, 8 - i), "hr@20": 0.03 * i}
            | {"attention_live": 0.05, "attention_energy": 0.1 * i, "semantic_to_id": 10.0 / i, "threshold": 0.1}
        )
    flat = {f"{name}@{k}": 0.01 * k ** (0.5 + i) for i, name in enumerate(("ndcg", "hr")) for k in (5, 10, 20, 50)}
    return ReportData(
        title="A run",
        command="python -m experiments.train --seed=3",
        config=Config().replace(seed=3, dropout=0.45).to_dict(),
        dataset={
            "users": 943,
            "items": 1682,
            "interactions": 100_000,
            "tied_targets": {"test": 415},
            "digest": "ab" * 32,
        },
        history=history,
        metrics={
            "valid": {**flat, "mrr": 0.021},
            "test": {**flat, "mrr": 0.019, "coverage@10": 0.5},
            "test_slices": {"head": {**flat, "users": 40}, "cold": {"hr@10": 0.0, "users": 3}},
            "train": {"examples_per_second": 5123.4},
            "parameters": {"total": 1001, "item_encoder": 1000, "backbone": 1},
            "digest": "3f" * 32,
            "protocol": "a9" * 32,
        },
        parameters=[("item_encoder/key", (r, 4), "float32", 4 * r, "(None, 'model')"), ("scale", (), "float32", 1, "")],
        text_singular_values=sigma * 30,
        item_singular_values=np.linspace(1, 0.1, d),
        initial_item_singular_values=np.linspace(1, 0.9, d),
        attention=attention,
        diagonal=(sigma[:d, None] ** np.arange(3)) @ taylor,
        weights=attention + np.eye(d, r),
        sigma=sigma,
        taylor=taylor,
        threshold=0.123,
        examples=[
            UserExample(
                "u7", ["Old one", "Ünï ☃ 千"], "Hit me", 2, [Recommended("A", 0.9), Recommended("Hit me", 0.8, True)]
            ),
            UserExample("u8", [], "Missed", 4321, [Recommended("A", 0.7)]),
        ],
        timings={"training": 61.0, "set-up": 0.5},
    )
