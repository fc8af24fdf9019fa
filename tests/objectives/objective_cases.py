"""A small case for every loss, its losses under jit by name, and their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax import objectives

TOKENS, COUNT, ITEMS, DIMENSION = 7, 11, 13, 5


@pytest.fixture
def case():
    """The case that the losses share."""
    return make_case()


def make_case():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ITEMS, DIMENSION))
    positive_ids = rng.integers(ITEMS, size=TOKENS)
    negative_ids = rng.integers(ITEMS, size=COUNT)
    negative_ids[:2] = positive_ids[:2]  # false negatives
    weight = np.ones(TOKENS)
    weight[-2:] = 0
    return {
        "states": rng.normal(size=(TOKENS, DIMENSION)),
        "table": table,
        "positive_ids": positive_ids,
        "negative_ids": negative_ids,
        "weight": weight,
    }


@jax.jit
def jitted_infonce(states, table, positive_ids, negative_ids, weight, temperature):
    excluded = positive_ids[:, None] == negative_ids
    vectors = table[positive_ids], table[negative_ids]
    return objectives.infonce(states, *vectors, excluded, weight, temperature=temperature)


@jax.jit
def jitted_sampled_softmax(states, table, positive_ids, negative_ids, weight, temperature):
    """With negatives drawn by q = (1, 2, ..., ITEMS) / sum."""
    log_q = jnp.log(jnp.arange(1, ITEMS + 1) / (ITEMS * (ITEMS + 1) / 2))
    masks = log_q[negative_ids], positive_ids[:, None] == negative_ids, jnp.exp(log_q[positive_ids])
    vectors = table[positive_ids], table[negative_ids]
    return objectives.sampled_softmax(states, *vectors, *masks, weight, temperature=temperature)


def call_infonce(case, dtype=jnp.float32, temperature=0.5, call=jitted_infonce, **changes):
    case = case | changes
    return call(
        np.asarray(case["states"], dtype),
        np.asarray(case["table"], dtype),
        np.asarray(case["positive_ids"], np.int32),
        np.asarray(case["negative_ids"], np.int32),
        np.asarray(case["weight"], np.float32),
        temperature,
    )


@jax.jit
def jitted_softmax(states, table, positive_ids, candidates, weight, temperature):
    return objectives.softmax(states, table, positive_ids, candidates, weight, temperature=temperature)


def call_softmax(case, dtype=jnp.float32, temperature=0.5, candidates=None, **changes):
    case = case | changes
    return jitted_softmax(
        np.asarray(case["states"], dtype),
        np.asarray(case["table"], dtype),
        np.asarray(case["positive_ids"], np.int32),
        np.ones(ITEMS, bool) if candidates is None else candidates,
        np.asarray(case["weight"], np.float32),
        temperature,
    )


def jitted_binary(calibration):
    beta = objectives.gbce_beta(COUNT, ITEMS, calibration)

    @jax.jit
    def binary(states, table, positive_ids, negative_ids, weight, temperature):
        excluded = positive_ids[:, None] == negative_ids
        vectors = table[positive_ids], table[negative_ids]
        return objectives.binary_cross_entropy(states, *vectors, excluded, weight, temperature=temperature, beta=beta)

    return binary


SAMPLED = {
    "infonce": jitted_infonce,
    "sampled_softmax": jitted_sampled_softmax,
    "bce": jitted_binary(0.0),
    "gbce": jitted_binary(0.75),
}
CALLS = {name: functools.partial(call_infonce, call=call) for name, call in SAMPLED.items()} | {"softmax": call_softmax}


def gradients(name, case, **changes):
    """Loss, and its gradients by the states and the table."""
    case = case | changes
    temperature = case.get("temperature", 0.5)

    @jax.jit
    def both(states, table):
        if name != "softmax":
            call = SAMPLED[name]
            ids = jnp.asarray(case["positive_ids"], jnp.int32), jnp.asarray(case["negative_ids"], jnp.int32)
            return call(states, table, *ids, jnp.asarray(case["weight"], jnp.float32), temperature)[0]
        ids = jnp.asarray(case["positive_ids"], jnp.int32)
        candidates = jnp.arange(ITEMS) > -1
        return jitted_softmax(states, table, ids, candidates, jnp.asarray(case["weight"], jnp.float32), temperature)[0]

    arrays = np.asarray(case["states"], np.float32), np.asarray(case["table"], np.float32)
    return jax.jit(jax.value_and_grad(both, argnums=(0, 1)))(*arrays)
