"""The same seed and global batch on one device and on any mesh: the same losses, parameters and ranks."""

import functools
import types

import jax
import numpy as np
import pytest
from eight_devices import SHAPES
from jax.sharding import Mesh

from spectran_jax import data
from spectran_jax.config import Config
from spectran_jax.data.interactions import Histories
from spectran_jax.metrics import metrics_from_ranks
from spectran_jax.training import exchange, partitioning
from spectran_jax.training.partitioning import AXES
from spectran_jax.training.programs import build_programs
from spectran_jax.training.setup import assemble

ITEMS, RANK, STEPS = 45, 20, 50
OPTIONS = {
    "dimension": 8,
    "attention_dimension": 4,
    "max_length": 6,
    "batch_size": 16,
    "eval_batch_size": 8,
    "negatives": 12,
    "blocks": 1,
    "heads": 2,
    "dropout": 0.3,
    "learning_rate": 0.01,
    "warmup_steps": 2,
}
BY_HISTORY = {"loss": "sampled_softmax", "mask_negatives": "history"}


def assembled(shape, *, hot=False, **options):
    """A run on a mesh of this shape, set up, and its histories.

    With `hot`, one item is nine in ten of all that users have met.
    """
    rng = np.random.default_rng(0)
    walks = [(rng.integers(ITEMS - 2) + np.arange(rng.integers(4, 9))) % (ITEMS - 2) for _ in range(64)]
    if hot:
        walks = [np.where(rng.random(len(walk)) < 0.9, 7, walk) for walk in walks]
    histories = Histories.from_lists(walks, None)
    counts = np.bincount(histories.items, minlength=ITEMS)
    u = rng.normal(size=(ITEMS, RANK)).astype(np.float32)
    spectrum = types.SimpleNamespace(u=u, sigma=np.linspace(1, 0.1, RANK).astype(np.float32), u_scale=None)
    embeddings = types.SimpleNamespace(matrix=u)
    axes = AXES[:1] if options.get("parallelism") == "pmap" else AXES
    mesh = Mesh(np.asarray(jax.devices()[: np.prod(shape)]).reshape(shape[: len(axes)]), axes)
    setup = assemble(
        Config().replace(**{**OPTIONS, **options}),
        types.SimpleNamespace(num_items=ITEMS),
        types.SimpleNamespace(train=histories, item_counts=counts),
        embeddings,
        spectrum,
        mesh,
    )
    return setup, histories


def on(shape, **options):
    """The losses of some steps, the last parameters and the ranks of some targets, trained on a mesh of this shape."""
    setup, histories = assembled(shape, **options)
    mesh, programs = setup.mesh, build_programs(setup, STEPS)
    batches = data.train_iterator(histories, setup.plan, seed=1, epochs=STEPS)
    stacked = jax.tree.map(lambda *x: np.stack(x), *(next(batches) for _ in range(STEPS)))
    frozen = setup.place()
    state, metrics = programs.train_steps(programs.init(), frozen, partitioning.put_batch(mesh, stacked, steps=True))
    users = np.arange(len(histories), dtype=np.int32)
    targets = data.Targets(history=histories, target=(users % ITEMS).astype(np.int32), user=users)
    table = programs.table(state.params, frozen)
    ranks = programs.rank(state.params, table, setup.eval_batches(targets))
    return setup, state, jax.device_get(metrics), ranks, programs.diagnostics(state.params, frozen)


def seen(params):
    """The leaves, float32, without what no loss sees: a softmax is blind to one shift of all keys, so the gradient of
    their bias is rounding, and Adam makes whole steps of it."""
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaf = np.asarray(leaf, np.float32)
        if jax.tree_util.keystr(path).endswith("['qkv']['bias']"):
            queries, _, values = np.split(leaf, 3)
            leaf = np.concatenate([queries, values])
        leaves.append(leaf)
    return leaves


@pytest.mark.parametrize(
    "options",
    [
        {"item_encoder": "spectran", "cold_scale": 1.3, "loss": "sampled_softmax"},
        {"item_encoder": "moe", "hot": True, "loss": "bce", "table_dtype": "bfloat16", "history_negatives": False},
        {"item_encoder": "rlmrec", "negatives": 6, "loss": "sampled_softmax", "sampling": "popularity"},
        {"item_encoder": "id", "loss": "softmax"},
        {"item_encoder": "svd", "backbone": "bert4rec", "sampling": "in_batch", **BY_HISTORY},
        {"item_encoder": "svd", "backbone": "hstu", "loss": "sampled_softmax", "sampling": "popularity"},
    ],
    ids=lambda options: f"{options['item_encoder']}-{options.get('backbone', 'sasrec')}",
)
def test_every_mesh_gives_the_numbers_of_one_device(options, monkeypatch):
    _, state, want, ranks, watched = on((1, 1), **options)
    exchanged = options["item_encoder"] in ("spectran", "moe", "svd")
    meshes = [(shape, "jit", 1) for shape in (SHAPES if options["item_encoder"] == "spectran" else [(4, 2)])]
    if "backbone" in options:
        meshes = []  # those of micro-batches, below, will do
    meshes += [((8, 1), "pmap", 1)] * (options["item_encoder"] in ("spectran", "id"))
    meshes += [((2, 2), "jit", 4), ((4, 2), "jit", 3)] * exchanged
    for shape, parallelism, micro_batches in meshes:
        crowded = shape[0] == 2 and exchanged
        if crowded:  # requests that one round can't carry
            monkeypatch.setattr(exchange, "plan", functools.partial(exchange.plan, capacity=1))
        setup, other, got, other_ranks, other_watched = on(
            shape, **options, parallelism=parallelism, micro_batches=micro_batches
        )
        assert setup.exchange is None or len(setup.exchange.lists) == (1 if micro_batches == 1 else micro_batches + 1)
        assert setup.access.cut == (parallelism == "jit")
        assert (setup.exchange is not None) == (exchanged and parallelism == "jit")
        monkeypatch.undo()
        if crowded:
            assert got["exchange_rounds"].min() > 1
        np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-4)
        np.testing.assert_allclose(got["grad_norm"], want["grad_norm"], rtol=1e-3)
        for name, value in metrics_from_ranks(ranks).items():
            assert metrics_from_ranks(other_ranks)[name] == pytest.approx(value, abs=1e-3)
        for name, value in watched.items():
            np.testing.assert_allclose(other_watched[name], value, rtol=1e-3, atol=1e-5)
        for a, b in zip(seen(state.params), seen(other.params), strict=True):
            np.testing.assert_allclose(b, a, atol=2e-3)
