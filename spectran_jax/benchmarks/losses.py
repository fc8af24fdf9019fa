"""Bars of the full softmax: the memory of its program, and its gradient against the plain formula."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from spectran_jax import objectives
from spectran_jax.benchmarks.rows import Measured, Settings, Unavailable, bar

TEMPERATURE = 0.07


@bar("softmax_memory", "Temporary MiB of softmax and its gradient (N 1,000,000, T 4,096, d 64)", at_most=128)
def softmax_memory(settings: Settings) -> Measured:
    """What the compiler says; nothing is run."""
    items, tokens, d = 1_000_000, 4_096, 64
    shape = jax.ShapeDtypeStruct
    loss = functools.partial(objectives.softmax, temperature=TEMPERATURE)
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).lower(
        shape((tokens, d), jnp.float32),
        shape((items, d), jnp.float32),
        shape((tokens,), jnp.int32),
        shape((items,), jnp.bool_),
        shape((tokens,), jnp.float32),
    )
    analysis = program.compile().memory_analysis()
    if analysis is None:
        raise Unavailable("the compiler of this platform does not tell its memory")
    mebibytes = analysis.temp_size_in_bytes / 2**20
    plain = 4 * items * tokens / 2**20
    return Measured(ratio=mebibytes, ours=mebibytes, other=plain, note="MiB; other: one matrix of all logits")


@bar("softmax_gradient", "Largest error of the softmax gradient over its largest entry (N 20,000)", at_most=1e-5)
def softmax_gradient(settings: Settings) -> Measured:
    """Both routes (chunks of positions, chunks of items) against NumPy in float64."""
    tokens, items, d = 512, 20_000, 64
    rng = np.random.default_rng(0)
    unit = lambda n: (x := rng.standard_normal((n, d))) / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    states, table = (unit(n).astype(np.float32) for n in (tokens, items))
    positive = rng.integers(0, items, tokens).astype(np.int32)
    expected = plain_gradients(states, table, positive)
    errors = []
    for chunk in (None, 2**16):
        loss = functools.partial(objectives.softmax, temperature=TEMPERATURE, chunk=chunk)
        gradient: Any = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        found, _ = gradient(states, table, positive, np.ones(items, bool), np.ones(tokens, np.float32))
        errors += [
            float(np.abs(np.asarray(f) - e).max() / np.abs(e).max()) for f, e in zip(found, expected, strict=True)
        ]
    return Measured(ratio=max(errors), ours=max(errors), note="worst of both routes, by states and by table")


def plain_gradients(
    states: Float[np.ndarray, "T d"], table: Float[np.ndarray, "N d"], positive: Int[np.ndarray, "T"]
) -> tuple[Float[np.ndarray, "T d"], Float[np.ndarray, "N d"]]:
    """Of the mean cross-entropy at `TEMPERATURE`, by states and table, from the formula in float64."""
    states, table = states.astype(np.float64), table.astype(np.float64)
    logits = states @ table.T / TEMPERATURE
    residual = np.exp(logits - logits.max(axis=1, keepdims=True))
    residual /= residual.sum(axis=1, keepdims=True)
    residual[np.arange(len(states)), positive] -= 1
    residual /= TEMPERATURE * len(states)
    return residual @ table, residual.T @ states
