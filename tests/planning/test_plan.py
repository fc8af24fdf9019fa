"""A job by its sizes: its shapes are those of the real pipeline; bad input; the real compiler where it is installed."""

import dataclasses
import importlib.util
import json
import os
import sys

import jax
import numpy as np
import pytest

from spectran_jax import data
from spectran_jax.backbones import layers
from spectran_jax.config import Config
from spectran_jax.data.interactions import Histories
from spectran_jax.errors import InputError
from spectran_jax.item_encoders import REGISTRY
from spectran_jax.planning import compiler, job, plan, topologies
from spectran_jax.planning.account import payload

SMALL = Config().replace(
    dimension=16, blocks=1, max_length=8, batch_size=16, eval_batch_size=8, negatives=16, attention_dimension=8
)
SIZES = job.Sizes(num_items=10**9, rank=32, text_dimension=48)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """`topologies.devices` sets variables, which would change how later tests compile."""
    for name in ("XLA_FLAGS", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        before = os.environ.get(name)
        monkeypatch.setenv(name, "")  # remembers what there was
        if before is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, before)


def shapes(tree):
    return jax.tree.map(lambda x: (np.shape(x), np.dtype(x.dtype)), tree)


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "hstu"])
def test_batches_have_the_shapes_of_the_pipeline(backbone):
    config = SMALL.replace(backbone=backbone, packing=False)
    planned = job.build(config, SIZES, jax.devices()[:1])
    setup = planned.setup
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 50, 9) for _ in range(16)]
    train = Histories.from_lists(lists, lists if setup.timed else None)
    batch = next(data.train_iterator(train, setup.plan, seed=0, epochs=1))
    assert shapes(planned.batch()) == shapes(batch)
    targets = dataclasses.replace(
        setup.split.test, history=train, target=np.zeros(16, np.int32), user=np.arange(16, dtype=np.int32)
    )
    evaluated = next(iter(setup.eval_batches(targets)))
    assert shapes(planned.eval_batch()) == shapes(evaluated)


def test_a_plan_holds_no_kernel_of_the_machine_that_plans(monkeypatch):
    monkeypatch.setattr(layers, "fused_attention", lambda *_: "cudnn")  # as on a GPU
    planned = job.build(SMALL.replace(precision="bfloat16"), SIZES, jax.devices()[:1])
    planned.lowered()["ranking, a batch"]()


def test_a_billion_items_are_shapes_and_nothing_else():
    planned = job.build(SMALL.replace(spectrum_dtype="int8"), SIZES, jax.devices()[:1])
    frozen = planned.setup.abstract().item_encoder
    rows = planned.setup.access.rows
    assert rows >= 10**9
    assert (frozen["u"].shape, frozen["u"].dtype) == ((rows, 32), np.int8)
    step = planned.lowered()["train step"]().as_text()
    assert f"{rows}x16xf32" in step  # the very step, over the whole table
    assert len(planned.lowered()) == 6
    for name in ("decomposition, a block", "projection, a block", "ranking, a batch", "item table, a chunk"):
        planned.lowered()[name]()
    one_device = payload(planned, {"collective_bytes": 0})
    assert one_device["needed"] == 0


@pytest.mark.parametrize("encoder", ["id", "whiten", "llmesr"])
def test_encoders_of_ids_of_text_and_of_both(encoder):
    planned = job.build(SMALL.replace(item_encoder=encoder), job.Sizes(10**8, 32, 48), jax.devices()[:1])
    assert planned.setup.access.items == 10**8
    assert ("projection, a block" in planned.lowered()) == REGISTRY[encoder].needs_spectrum


def test_bad_input(tmp_path, monkeypatch):
    def fails(message, names=("v5e:2x2",), config=SMALL, sizes=SIZES):
        with pytest.raises(InputError, match=message):
            plan.run(config, sizes, names, tmp_path)

    fails("Name a slice", names=())
    fails("unknown slice 'v5e:2x3'", names=("v5e:2x3",))
    fails("no common scale", names=("v5e:2x2", "v5p:2x2x2"))
    fails(r"--batch_size=16 .* v5e:4x8: .* multiple of 32", names=("v5e:2x2", "v5e:4x8"))
    with monkeypatch.context() as patch:  # all slices are looked at before one is compiled
        patch.setattr(topologies, "devices", lambda topology: jax.devices() * topology.chips)
        patch.setattr(plan, "plan_slice", lambda *args, **options: pytest.fail("was compiled"))
        two, mesh = ("v5e:2x2", "v5e:2x4"), SMALL.replace(mesh="data:4")
        fails("--mesh=data:4 asks for 4 devices, there are 8", names=two, config=mesh)
    with pytest.raises(InputError, match="2,147,000,000 items are too many: their numbers are int32"):
        job.build(SMALL, dataclasses.replace(SIZES, num_items=2_147_000_000), jax.devices()[:1])
    with pytest.raises(InputError, match="--spectrum_memory=host is for one process"):
        job.build(SMALL.replace(spectrum_memory="host"), SIZES, jax.devices()[:1])
    with pytest.raises(InputError, match=r"--max_rank=8: .* take --rank"):
        job.build(SMALL.replace(max_rank=8), SIZES, jax.devices()[:1])
    monkeypatch.setitem(sys.modules, "libtpu", None)
    fails(r"pip install '\.\[plan\]'")
    with pytest.raises(InputError, match="--num_items=3 is below --negatives"):
        job.build(SMALL, job.Sizes(3, 2, 4), jax.devices()[:1])
    with pytest.raises(InputError, match="--rank=32 is above --text_dimension=8"):
        job.build(SMALL, job.Sizes(99, 32, 8), jax.devices()[:1])
    with pytest.raises(InputError, match="asks for 7 devices"):
        job.build(SMALL.replace(mesh="data:7"), SIZES, jax.devices()[:1])


@pytest.mark.parametrize(
    ("libtpu", "asked", "told"),
    [
        ("0.0.42.1", ["numpy>=2", 'libtpu==0.0.42.*; extra == "tpu"'], ""),
        ("0.0.42", ["libtpu==0.0.42.*"], ""),
        ("0.0.421", ["libtpu==0.0.42.*"], "libtpu 0.0.421 is installed, JAX 0.10.2 asks for libtpu==0.0.42.*: in the "),
        ("0.0.52", ["libtpu==0.0.42.*"], "libtpu 0.0.52 is installed, "),
        ("", ["libtpu==0.0.42.*"], "libtpu of an unknown version is installed, "),
        ("0.0.52", None, "libtpu 0.0.52 is installed, what JAX 0.10.2 asks for is unknown: "),
    ],
)
def test_a_compiler_of_another_version_is_told(libtpu, asked, told, monkeypatch):
    class Compiled:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nand much more")

    monkeypatch.setattr(compiler, "versions", lambda: {"jax": "0.10.2", "libtpu": libtpu})
    monkeypatch.setattr(compiler.metadata, "requires", lambda name: asked)
    assert compiler.mismatch().startswith(told)
    assert bool(compiler.mismatch()) == bool(told)
    with pytest.raises(InputError) as error:
        compiler.text(Compiled())
    unread = "JAX can't read the program that libtpu compiled (INTERNAL: RET_CHECK failure)."
    assert str(error.value) == " ".join(filter(None, (unread, compiler.mismatch())))


def test_the_versions_of_a_compiler():
    found = compiler.versions()
    assert found["jax"] == jax.__version__
    assert (found["libtpu"] == "") == (importlib.util.find_spec("libtpu") is None)
    assert compiler.asked_for().startswith("libtpu==")


def test_shares_of_a_job():
    small, large = topologies.parse("v5e:2x2"), topologies.parse("v5e:4x4")
    config, sizes = plan.share(SMALL.replace(batch_size=64), SIZES, small, large)
    assert (config.training.batch_size, sizes.num_items) == (16, 250_000_000)
    assert plan.share(SMALL, SIZES, large, large) == (SMALL, SIZES)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the extra [plan], is not installed")
def test_no_program_copies_a_table(tmp_path, run_command):
    """A TPU's compiler cuts a slice of int8 rows out of a copy of the whole array."""
    flags = {"topology": "v5e:2x2", "num_items": 4_000_000, "rank": 512, "text_dimension": 512, "dimension": 16}
    flags |= {"blocks": 1, "max_length": 8, "batch_size": 16, "negatives": 16, "attention_dimension": 8}
    done = run_command("plan", flags | {"spectrum_dtype": "int8", "workdir": tmp_path}, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    temporary = {name: program["bytes"]["temporaries"] for name, program in made["programs"].items()}
    assert max(temporary["train step"], temporary["item table, a chunk"]) < 4_000_000 / 4 * 512 / 4, temporary


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the extra [plan], is not installed")
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_by_the_real_compiler(micro_batches, tmp_path, run_command):
    flags = {"topology": "v5e:2x2", "programs": "train", "num_items": 100_000, "rank": 32, "text_dimension": 48}
    flags |= {"dimension": 16, "blocks": 1, "max_length": 8, "batch_size": 16, "negatives": 16, "dropout": 0}
    flags |= {"attention_dimension": 8, "spectrum_dtype": "int8", "workdir": tmp_path, "micro_batches": micro_batches}
    done = run_command("plan", flags, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["compiler"] == compiler.versions()
    (made,) = written["plans"]
    step = made["programs"]["train step"]
    assert made["fits"]
    assert step["flops"] > 0
    kinds = {each["kind"] for each in step["collectives"] if each["runs"]}
    assert {"all-to-all", "all-reduce"} <= kinds
    assert all(each["axes"] == ["data"] for each in step["collectives"])
    assert 0.3 < made["payload"]["ratio"] < 6
    assert "exchanges" in done.stdout
    # Only what has something to run beside is told to the compiler.
    hidden = 1 - step["seconds"]["with_overlap"] / step["seconds"]["without_overlap"]
    assert (hidden > 1e-6) == (micro_batches > 1)
