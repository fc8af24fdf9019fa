"""The account of a method's cost against counts by hand."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax.config import Config
from spectran_jax.errors import InputError, Interrupted
from spectran_jax.studies import costs, efficiency
from spectran_jax.studies.efficiency import (
    ADAPTER_BAR,
    adapter_parameters,
    count_parameters,
    flops,
    flops_per_item,
    measure,
)
from spectran_jax.synthetic import synthetic_inputs, synthetic_setup
from spectran_jax.training.programs import build_programs

N, M, D = 60, 24, 8
CONFIG = Config().replace(
    dimension=D, attention_dimension=4, blocks=1, heads=2, max_length=6, negatives=8, batch_size=8, eval_batch_size=16
)


@pytest.mark.parametrize("k", [64, 512])
def test_the_adapter_of_the_paper_is_within_its_bar_whatever_the_catalogue(k):
    """Q [d, k], K [r, k], the threshold and P + 1 coefficients; r = m once N >= m."""
    config = Config().replace(dimension=128, attention_dimension=k)
    counts = {items: adapter_parameters(config, items=items, width=4096) for items in (1000, 4096, 100_000)}
    assert counts[4096] == counts[100_000] == k * (128 + 4096) + 1 + 3 <= ADAPTER_BAR
    assert counts[1000] == k * (128 + 1000) + 1 + 3


def test_parameters_with_one_row_an_item_are_no_adapter():
    params = {
        "item_encoder": {"table": np.zeros((7, 3)), "adapter": {"query": np.zeros((3, 2)), "threshold": np.zeros(())}},
        "backbone": {"table": np.zeros((5, 5))},
    }
    assert count_parameters(params, ("table",), 7) == (21 + 6 + 1 + 25, 7)
    assert count_parameters(params, ("table",), 5) == (15 + 6 + 1 + 25, 7)  # two rows fill the table up


def test_an_item_of_spectran_costs_its_product_with_w():
    """u W^T is 2 r d; scaling and adding the ID part are a few operations for each of d numbers."""
    setup = synthetic_setup(CONFIG.replace(item_encoder="spectran"), synthetic_inputs(N, M, 40))
    found = flops_per_item(setup, build_programs(setup, 1).state.params, few=32)
    assert 2 * M * D <= found <= 2 * M * D + 6 * D


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_products_in_loops_count_as_often_as_they_run(precision):
    def chain(x):
        multiply = lambda _, y: jnp.dot(y, x, precision=precision)  # noqa: E731
        return jax.lax.fori_loop(0, 3, lambda _, y: jax.lax.fori_loop(0, 5, multiply, y) @ x, x @ x)

    found = flops(jax.jit(chain).lower(jax.ShapeDtypeStruct((16, 16), "float32")).compile())
    assert found == pytest.approx((3 * (5 + 1) + 1) * 2 * 16**3, rel=0.01)


def test_a_row_holds_every_figure():
    """One tiny model, compiled and timed for real; no figure of time is looked at but for its sign."""
    rows = measure(CONFIG, ["id"], items=N, width=M, users=40, repeats=1)
    row = rows["id"]
    assert row["adapter"] == 0
    assert row["parameters"] > N * D
    assert 0 < row["temporary_bytes"] < row["peak_bytes"]
    assert min(row["step_flops"], row["step_seconds"], row["evaluation_seconds"]) > 0


def test_figures_are_measured_once_and_written_with_their_units(tmp_path, monkeypatch):
    row = {
        "parameters": 2_000_000, "adapter": 1000, "step_flops": 3e6, "item_flops": 4e3, "temporary_bytes": 2**20,
        "peak_bytes": 5 * 2**20, "step_seconds": 0.006, "evaluation_seconds": 0.07,
    }  # fmt: skip
    asked = []
    monkeypatch.setattr(efficiency, "measure", lambda config, encoders, **_: asked.append(1) or {"spectran": row})
    sizes = {"items": N, "width": M, "users": 40, "repeats": 1, "command": "c"}
    for _ in range(2):
        result = costs.run(CONFIG, tmp_path, ["spectran"], **sizes)
    assert len(asked) == 1
    assert list(result.tables[0].rows[0]) == ["spectran", 2_000_000, 1000, 3, 4, 1, 5, 6, 70]
    assert [r[-1] for r in result.tables[1].rows] == ["yes"] * 4
    costs.run(CONFIG.replace(dimension=16), tmp_path, ["spectran"], **sizes)
    assert len(asked) == 2
    for broken in ("{}", "null"):
        (tmp_path / "figures.json").write_text(broken)
        costs.run(CONFIG, tmp_path, ["spectran"], **sizes)
    assert len(asked) == 4


def test_a_signal_ends_it_by_one_message_and_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(efficiency, "measure", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(
            Interrupted, match=r"^Stopped by SIGTERM; start the same command again, which begins anew\.$"
        ):
            costs.run(CONFIG, tmp_path, ["id"], items=N, width=M, users=40, repeats=1, command="c")
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert not (tmp_path / "figures.json").exists()


@pytest.mark.parametrize("unread", [{"spectrum_dtype": "int8"}, {"max_rank": 9}, {"rtol": 0.1}])
def test_a_spectrum_that_is_not_measured_is_refused(tmp_path, unread):
    """Its figures would be those of all components in float32."""
    with pytest.raises(InputError, match=f"--{next(iter(unread))}={next(iter(unread.values()))} is not read"):
        costs.run(CONFIG.replace(**unread), tmp_path, ["id"], items=N, width=M, users=40, repeats=1, command="c")
    assert not any(tmp_path.iterdir())


def test_flags_that_random_data_does_not_follow_are_refused_and_those_of_a_runs_file_passed_over(tmp_path, monkeypatch):
    sizes = {"items": N, "width": M, "users": 40, "repeats": 1, "command": "c"}
    for given, message in (
        ("k_core", "Costs are measured on random data: --k_core is not read; leave it out."),
        ("item_encoder", "Costs are of several: give --item_encoders=NAME,NAME instead of --item_encoder."),
    ):
        with pytest.raises(InputError, match=message):
            costs.run(CONFIG, tmp_path, ["id"], **sizes, given=["dropout", given])
    with pytest.raises(InputError, match="Unknown item encoder in --item_encoders: 'spectrn'"):
        costs.run(CONFIG, tmp_path, ["spectrn"], **sizes)
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(efficiency, "measure", lambda config, encoders, **_: {})
    costs.run(CONFIG.replace(k_core=3), tmp_path, ["id"], **sizes, given=["dropout"])
