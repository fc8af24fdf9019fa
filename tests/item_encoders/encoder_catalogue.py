"""A catalogue of 30 items for the tests of alphafuse, rlmrec and llmesr, and modules with parameters at random."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from spectran_jax import item_encoders, spectral
from spectran_jax.config import EncoderConfig
from spectran_jax.item_encoders import ItemSource, StepView
from spectran_jax.layout import SequenceLayout

N, M, D, L = 30, 12, 8, 6
TEXTLESS, COLD = 4, 7


@functools.cache
def source():
    """Items with random text; one without, one in no training."""
    text = np.random.default_rng(0).normal(size=(N, M)).astype(np.float32)
    text[TEXTLESS] = 0
    counts = np.ones(N, np.int32)
    counts[COLD] = 0
    return ItemSource(num_items=N, counts=counts, spectrum=spectral.decompose(text, text.any(axis=1)), text=text)


def singular_vectors():
    """U sqrt(n), S of the unit rows less their mean, from the definition; zero rows without text."""
    text = np.delete(source().text, TEXTLESS, axis=0).astype(np.float64)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    left, s, right = np.linalg.svd(text - text.mean(axis=0), full_matrices=False)
    u = np.insert(left * np.sqrt(N - 1), TEXTLESS, 0, axis=0)
    return u * np.sign(right[np.arange(M), np.abs(right).argmax(axis=1)]), s, right.T


@functools.cache
def built(name, dtype=jnp.float32, **options):
    chosen = {"dimension": D, "adapter_width": 5, "semantic_scale": 0.1, "spectral_power": 0.0, **options}
    config = EncoderConfig(item_encoder=name, **chosen)
    return item_encoders.build(config, source(), dtype=dtype)


def everything(module):
    """Whatever has parameters."""
    ids = jnp.zeros((1, L), jnp.int32)
    layout = SequenceLayout(ids == 0, ids + 1, ids)
    vectors = module.table()
    module.contextualize(vectors[ids], layout)
    module.auxiliary(module.rows(None), StepView(vectors, ids, layout, jnp.ones((1, L, D)), ids[0], jnp.ones(L)))


@functools.cache
def started(name, **options):
    """A module, its frozen arrays and parameters at random, biases included."""
    module, frozen = built(name, **options)
    shapes = jax.eval_shape(
        lambda f: module.apply(
            {"frozen": f}, rngs={"params": jax.random.key(0)}, mutable=["params"], method=everything
        )[1]["params"],
        frozen,
    )
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return module, frozen, jax.tree.unflatten(tree, [rng.normal(0, 0.4, x.shape).astype(np.float32) for x in leaves])


@functools.cache
def _jitted(module, method):
    return jax.jit(lambda variables, *args, **rngs: module.apply(variables, *args, method=method, rngs=rngs))


def table(module, frozen, params):
    return _jitted(module, type(module).table)({"params": params, "frozen": frozen})


def losses(module, seen):
    """The auxiliary losses of a step; `seen` comes without vectors."""
    rows = module.rows(None)
    return module.auxiliary(rows, seen._replace(vectors=module.encode(rows)))


def auxiliary(module, frozen, params, seen, **rngs):
    """The same under jit, on the whole catalogue."""
    return _jitted(module, losses)({"params": params, "frozen": frozen}, seen, **rngs)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


TARGETS = np.array([3, 9, 3, TEXTLESS, 12, 9, 3, 20], np.int32)
WEIGHT = np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)
"""Items that a step supervises, and the weight of each."""

# Two rows of histories: 2 + 3 items and padding; 4 items and padding.
SEGMENT = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]], np.int32)


def layout_of(segment, hidden=None):
    position = np.zeros_like(segment)
    for row, of in zip(position, segment, strict=True):
        for number in range(1, of.max() + 1):
            row[of == number] = np.arange(np.count_nonzero(of == number))
    return SequenceLayout(segment > 0, segment, position, None, hidden)
