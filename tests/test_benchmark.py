"""The benchmark's bookkeeping on stub rows, its counts against independent ones; no real timing."""

import dataclasses
import itertools
import json
import re
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPO

from spectran_jax.benchmarks import decomposition as decompositions
from spectran_jax.benchmarks import flops, gpu, losses, peers, probe, quality, report, rows, sessions, timing, training
from spectran_jax.benchmarks.rows import Measured, Settings, Unavailable
from spectran_jax.errors import InputError, RunError
from spectran_jax.machine import describe_machine

CURVE = {"time": {"title": "T", "xlabel": "x", "ylabel": "y", "series": {"s": [[1, 2], [10, 20], [100, 200]]}}}


def stub_bar(name, measure, *, limit=1.0, at_least=True, quick=True):
    return rows.Bar(name, f"what {name} is", limit, at_least, measure, quick)


def registry_of(*stubs):
    return {b.name: b for b in stubs}


def raising(error):
    def measure(settings):
        raise error

    return measure


@pytest.fixture
def settings(tmp_path):
    return Settings(workdir=tmp_path / "run")


# Rows.


@pytest.mark.parametrize(
    ("at_least", "ratio", "holds", "met"),
    [
        (True, 2.0, True, True),
        (True, 1.999, True, False),
        (True, 3.0, False, False),
        (False, 2.0, True, True),
        (False, 2.001, True, False),
        (False, 1.0, False, False),
        (True, float("nan"), True, False),
        (False, float("nan"), True, False),
    ],
)
def test_a_bar_is_met_at_its_limit_and_only_with_its_conditions(settings, at_least, ratio, holds, met):
    row = rows.measure(
        stub_bar("a", lambda _: Measured(ratio, holds=holds), limit=2.0, at_least=at_least), settings, {}
    )
    assert row.met is met


@pytest.mark.parametrize(
    ("error", "met"),
    [(Unavailable("no GPU here"), None), (RunError("no GPU here"), False), (ValueError("no GPU here"), False)],
)
def test_what_cannot_run_is_not_missed_and_what_fails_is(settings, error, met):
    row = rows.measure(stub_bar("a", raising(error)), settings, {})
    assert row.met is met
    assert "no GPU here" in row.note
    assert report.missed([row], {}) == ([] if met is None else ["a"])


def test_choice_of_rows():
    registry = registry_of(stub_bar("a", None), stub_bar("b", None, quick=False), stub_bar("c", None))
    names = lambda *args, **kwargs: [b.name for b in rows.chosen(*args, registry=registry, **kwargs)]  # noqa: E731
    assert names([], full=False) == ["a", "c"]
    assert names([], full=True) == ["a", "b", "c"]
    assert names(["c", "b"], full=False) == ["b", "c"]
    with pytest.raises(InputError, match=r"Unknown row 'bb'.*Did you mean 'b'"):
        names(["bb"], full=False)


# The whole: JSON after each row, resuming.


def counting(calls, name, ratio=2.0):
    def measure(settings):
        calls.append(name)
        assert settings.repeats
        return Measured(ratio, 4.0, 2.0, (1.5, 2.5), "note | with a bar", curves=CURVE)

    return measure


def test_results_are_written_and_not_measured_again(settings):
    calls = []
    registry = registry_of(
        stub_bar("a", counting(calls, "a")),
        stub_bar("b", counting(calls, "b", 0.5)),
        stub_bar("c", raising(Unavailable("needs --data"))),
    )
    results = report.benchmark(settings, registry=registry)
    assert [r.met for r in results] == [True, False, None]
    assert report.missed(results, describe_machine()) == ["b"]
    assert report.missed(results, {**describe_machine(), "code": "older"}) == []
    written = json.loads((settings.workdir / "benchmark.json").read_text())
    assert {"cores", "platform", "jax", "device"} <= set(written["machine"])
    first = written["rows"][0]
    assert (first["ours"], first["other"], first["ratio"], first["limit"], first["met"]) == (4.0, 2.0, 2.0, 1.0, True)
    assert first["spread"] == [1.5, 2.5]
    text = (settings.workdir / "benchmark.md").read_text()
    cells = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("|")]
    assert len(cells) == 2 + 3
    assert len({len(c) for c in cells}) == 1
    assert "exponent 1.00" in (settings.workdir / "time.svg").read_text()

    report.benchmark(settings, registry=registry)
    assert calls == ["a", "b"]
    report.benchmark(settings, ["a"], again=True, registry=registry)
    assert calls == ["a", "b", "a"]
    report.benchmark(dataclasses.replace(settings, repeats=7), ["b"], registry=registry)
    assert calls == ["a", "b", "a", "b"]


def test_a_row_that_cannot_run_now_takes_the_place_of_none_that_did(settings):
    calls = []

    def measure(settings):
        settings.dataset("beauty")
        return counting(calls, "a")(settings)

    (settings.workdir.parent / "beauty").mkdir()
    (settings.workdir.parent / "beauty" / "interactions.tsv").touch()
    with_data, registry = (
        dataclasses.replace(settings, data=settings.workdir.parent),
        registry_of(stub_bar("a", measure)),
    )
    measured = report.benchmark(with_data, registry=registry)
    assert report.benchmark(settings, registry=registry) == measured
    assert report.benchmark(settings, again=True, registry=registry) == measured
    assert report.read(settings.workdir / "benchmark.json") == measured
    assert report.benchmark(with_data, registry=registry) == measured
    assert calls == ["a"]
    # One that fails is told.
    (failed,) = report.benchmark(settings, registry=registry_of(stub_bar("a", raising(RunError("broken")))))
    assert failed.met is False


def test_a_row_is_measured_again_for_other_values_of_what_it_reads_alone(settings):
    calls = []
    registry = registry_of(
        stub_bar("a", lambda settings: counting(calls, "a")(settings)),
        stub_bar("b", lambda settings: calls.append("b") or Measured(1.0 + settings.full)),
    )
    (a, b) = report.benchmark(settings, registry=registry)
    assert (a.settings, b.settings) == ({"repeats": 5}, {"full": False})
    report.benchmark(dataclasses.replace(settings, peers=REPO, peer_python="python"), registry=registry)
    assert calls == ["a", "b"]
    report.benchmark(dataclasses.replace(settings, repeats=7), registry=registry)
    assert calls == ["a", "b", "a"]
    report.benchmark(dataclasses.replace(settings, repeats=7, full=True), registry=registry)
    assert calls == ["a", "b", "a", "b"]


def test_rows_of_several_machines_name_theirs(settings):
    machine = describe_machine()
    made = [
        rows.measure(stub_bar(name, counting([], name)), settings, {**machine, "code": code})
        for name, code in (("a", "first"), ("b", "second"))
    ]
    text = report.markdown(made)
    assert "- 1: Measured on" in text
    assert re.search(r"\| a \|.*\| 1 \|\n\| b \|.*\| 2 \|\n", text)
    assert "| Machine |" not in report.markdown(made[:1])


def test_a_killed_run_keeps_what_it_has(settings):
    calls = []
    good, killed = stub_bar("a", counting(calls, "a")), stub_bar("b", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        report.benchmark(settings, registry=registry_of(good, killed))
    results = report.benchmark(settings, registry=registry_of(good, stub_bar("b", counting(calls, "b"))))
    assert calls == ["a", "b"]
    assert [r.name for r in results] == ["a", "b"]


def test_a_failed_row_is_tried_again(settings):
    calls = []
    report.benchmark(settings, registry=registry_of(stub_bar("a", raising(RunError("disk full")))))
    results = report.benchmark(settings, registry=registry_of(stub_bar("a", counting(calls, "a"))))
    assert calls == ["a"]
    assert results[0].met


def test_a_damaged_file_is_refused(settings):
    settings.workdir.mkdir()
    (settings.workdir / "benchmark.json").write_text('{"rows": [{"name": 1}]}')
    with pytest.raises(InputError, match=r"benchmark\.json"):
        report.benchmark(settings, registry={})


def test_exit_status(tmp_path, monkeypatch, capsys):
    from absl import flags
    from absl.testing import flagsaver

    from experiments import benchmark as command
    from spectran_jax import benchmarks

    outcomes = iter([2.0, 0.1])
    registry = {"a": stub_bar("a", lambda _: Measured(next(outcomes)))}
    monkeypatch.setattr(
        benchmarks, "benchmark", lambda s, names, again: report.benchmark(s, names, again=again, registry=registry)
    )
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(workdir=tmp_path / "w"):
        command.main()
        assert "what a is" in re.sub(r"\s+", " ", capsys.readouterr().out)
    with (
        flagsaver.flagsaver(workdir=tmp_path / "w", again=True),
        pytest.raises(RunError, match="1 of 1 rows miss their bar: a") as error,
    ):
        command.main()
    assert error.value.exit_status == 1
    with flagsaver.flagsaver(workdir=None), pytest.raises(InputError, match="--workdir"):
        command.main()
    with flagsaver.flagsaver(workdir=tmp_path, data=tmp_path / "nowhere"), pytest.raises(InputError, match="--data"):
        command.main()


def test_every_row_says_what_it_needs(settings):
    for family in report.FAMILIES:
        report.importlib.import_module(f"spectran_jax.benchmarks.{family}")
    named = (REPO / "experiments" / "benchmark.py").read_text()
    for name in rows.REGISTRY:
        assert re.search(rf"\b{name}\b", named), f"--help does not name {name}"
    for name in ("rectools_beauty", "torch_office", "packing_fill", "utilisation", "loop", "quality_int8", "gpu"):
        row = rows.measure(rows.REGISTRY[name], settings, {})
        assert row.met is None
        assert re.search("needs --data|no GPU here", row.note)


# Timing.


def test_sides_alternate_after_one_warm_up_each():
    order, now = [], itertools.count()
    ticks = {"a": 1, "b": 3}

    def side(name):
        def call():
            order.append(name)
            for _ in range(ticks[name]):
                next(now)
            return jnp.zeros(())

        return call

    # The clock stands still but for what sides advance it by; reading it costs one.
    paired = timing.alternate({n: side(n) for n in "ab"}, 3, calls=2, clock=lambda: next(now))
    assert "".join(order) == "ab" + "aabb" * 3
    assert paired.values == {"a": [1.5] * 3, "b": [3.5] * 3}
    assert paired.median("b") == 3.5


def test_ratios_are_medians_of_pairs():
    # The ratio of medians would be 2/10; the machine was busy in the second turn, and the pairs know.
    paired = timing.Paired({"ours": [1.0, 30.0, 2.0], "other": [2.0, 20.0, 10.0]})
    assert paired.ratio("ours", over="other") == (0.5, 0.2, 1.5)


def test_fitted_exponent():
    x = np.geomspace(3, 5000, 9)
    assert report.fitted_exponent(np.stack([x, 7 * x**1.7], 1)) == pytest.approx(1.7)
    assert report.fitted_exponent(np.stack([x, np.full(9, 4.0)], 1)) == pytest.approx(0, abs=1e-12)


# Counts.


class Counted(np.ndarray):
    """Counts the multiplications and additions of each matrix product that it takes part in."""

    total = 0

    def __matmul__(self, other):
        Counted.total += 2 * self.shape[0] * self.shape[1] * other.shape[1]
        return (np.asarray(self) @ np.asarray(other)).view(Counted)


def test_products_of_a_step_against_a_numpy_run_of_forward_and_backward():
    tokens, items, negatives, d, r, k, blocks, ffn = 11, 7, 5, 4, 6, 3, 2, 4
    array = lambda *shape: np.ones(shape).view(Counted)  # noqa: E731
    Counted.total = 0

    def layer(x, w):
        y = x @ w
        _ = y @ w.T, x.T @ y  # the gradients to the input and to the weight, by a cotangent of y's shape
        return y

    x = array(tokens, d)
    for _ in range(blocks):
        h = layer(x, array(d, 3 * d))
        h = layer(h[:, :d], array(d, d))
        x = layer(layer(h, array(d, ffn * d)), array(ffn * d, d))
    scores = x @ array(negatives, d).T
    _ = scores @ array(negatives, d), scores.T @ x
    w = array(d, k) @ array(r, k).T
    vectors = array(items, r) @ w.T
    by_w = vectors.T @ array(items, r)
    _ = by_w @ array(r, k), by_w.T @ array(d, k)

    products = flops.step_products(
        tokens=tokens, items=items, negatives=negatives, dimension=d, rank=r, attention=k, blocks=blocks, ffn=ffn
    )
    assert sum(p.flops for p in products) == Counted.total


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("NVIDIA A10G", None),
    ],
)
def test_a_device_has_the_peak_of_its_data_sheet(kind, peak):
    assert gpu.known_peak(kind) == peak


def test_attention_counts_pairs_of_one_history_in_order():
    lengths, heads, width, blocks = [3, 1, 4], 2, 5, 3
    count = 0
    for length in lengths:
        for query in range(length):
            for _ in range(query + 1):
                count += heads * (2 * width + 2 * width)  # score, share of the value
    assert flops.attention_flops(np.array(lengths), heads * width, blocks) == 3 * blocks * count


@pytest.mark.parametrize("contract", ["forward", "input", "weight"])
def test_a_bare_product_has_the_shape_of_the_step(contract):
    assert training.bare_product(flops.Product("p", 6, 3, 5, contract=contract))().shape == (6, 5)


def test_distinct_items_of_a_small_catalogue():
    setup = sessions.synthetic(30, rank=8, dimension=8, users=60, batch_size=30, negatives=16)
    assert 25 < training.distinct_items(setup) <= 30


def test_plain_softmax_gradient_by_differences():
    rng = np.random.default_rng(0)
    states, table, positive = rng.normal(size=(3, 4)) * 0.1, rng.normal(size=(5, 4)) * 0.1, np.array([1, 4, 1])

    def loss(states, table):
        logits = states @ table.T / losses.TEMPERATURE
        return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(3), positive])

    by_states, by_table = losses.plain_gradients(states, table, positive)
    step = 1e-6 * np.eye(1, 4, 2)[0]
    for row in range(3):
        moved = states.copy()
        moved[row] += step
        assert (loss(moved, table) - loss(states, table)) / 1e-6 == pytest.approx(by_states[row, 2], abs=1e-4)
    for row in range(5):
        moved = table.copy()
        moved[row] += step
        assert (loss(states, moved) - loss(states, table)) / 1e-6 == pytest.approx(by_table[row, 2], abs=1e-4)


def test_interval_of_paired_differences():
    mean, low, high = quality.interval([1.1, 0.9, 1.2, 1.0], [1.0, 1.0, 1.0, 1.0])
    assert mean == pytest.approx(0.05)
    assert high - mean == pytest.approx(3.182446 * np.std([0.1, -0.1, 0.2, 0], ddof=1) / 2, rel=1e-5)
    assert mean - low == pytest.approx(high - mean)


def test_embeddings_are_removed(tmp_path):
    with decompositions.embeddings(tmp_path / "d", 40) as (source, out):
        assert np.load(source).shape == (40, decompositions.DIMENSION)
        assert decompositions.bare(40, out)() > 0
        assert out.stat().st_size == 40 * decompositions.RANK * 4
    assert not (tmp_path / "d").exists()


def test_anonymous_memory_is_seen():
    before = probe.anonymous_kib()
    with probe.AnonymousPeak() as peak:
        held = np.ones(16 * 2**20)  # above what malloc may take from freed, still resident memory
        peak.kib = max(peak.kib, probe.anonymous_kib())
    assert peak.kib - before > 0.9 * held.nbytes / 2**10


# Peers.


@pytest.fixture
def with_peer(tmp_path):
    folder = tmp_path / "peers"
    folder.mkdir()

    def write(body):
        (folder / "peer.py").write_text(textwrap.dedent(body))
        return Settings(workdir=tmp_path / "run", peers=folder, peer_python=sys.executable)

    return write


def test_a_peer_is_heard_through_its_noise(with_peer):
    settings = with_peer("""
        import json, sys
        print("epoch 1"); print(json.dumps({"examples_per_second": 1, "other": 2}))
        print(json.dumps({"examples_per_second": 12.5, "ndcg@10": 0.04, "arguments": sys.argv[1:]})); print("[1, 2]")
    """)
    found = peers.run(settings, "peer.py", "--epochs", "2")
    assert found == {"examples_per_second": 12.5, "ndcg@10": 0.04, "arguments": ["--epochs", "2"]}


def test_a_peer_that_fails_or_says_nothing(with_peer):
    with pytest.raises(RunError, match=r"peer\.py --x ended with status 1: ValueError: no such mode"):
        peers.run(with_peer("raise ValueError('no such mode')"), "peer.py", "--x")
    with pytest.raises(RunError, match="no JSON line"):
        peers.run(with_peer("print('{}')"), "peer.py")
    with pytest.raises(Unavailable, match=r"peer_python"):
        peers.run(Settings(workdir=REPO), "peer.py")


def test_the_best_mode_is_the_fastest_that_runs(with_peer):
    settings = with_peer("""
        import json, sys
        speed = {"": 10, "--sparse": 30}["".join(sys.argv[1:])]
        print(json.dumps({"examples_per_second": speed, "ndcg@10": 0.1}))
    """)
    mode, note = peers.best_mode(settings, "peer.py", [], ["", "--sparse", "--compile"])
    assert mode == "--sparse"
    assert "default 10/s; --sparse 30/s; --compile failed" in note


def test_quality_of_a_peer_is_remembered_until_its_script_or_its_data_changes(with_peer, tmp_path):
    body = "import json; print(json.dumps({{'examples_per_second': 1, 'ndcg@10': {}}}))"
    count = with_peer("").workdir.parent / "count"
    script = f"open({str(count)!r}, 'a').write('x')\n" + body
    settings = with_peer(script.format(0.1))
    for _ in range(2):
        assert peers.remembered(settings, "peer.py")["ndcg@10"] == 0.1
    assert count.read_text() == "x"
    assert peers.remembered(with_peer(script.format(0.2)), "peer.py")["ndcg@10"] == 0.2
    data = tmp_path / "data"
    for content, runs in (("one", 3), ("one", 3), ("two", 4)):
        data.write_text(content)
        peers.remembered(settings, "peer.py", files=[data])
        assert len(count.read_text()) == runs
