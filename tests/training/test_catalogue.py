"""Taking the rows that a step touches out of a tree and putting them back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectran_jax.training import catalogue

TABLE = ("id_embedding",)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(0, 5))
def test_distinct_ids_and_their_places(ids, spare):
    known = sorted({i for i in ids if i < 12})  # 12 stands for no item
    size = len(known) + spare
    if not size:
        return
    got = np.asarray(catalogue.distinct(jnp.asarray(ids, jnp.int32), size, 12))
    assert got.tolist() == known + [12] * spare
    at = np.asarray(catalogue.place(jnp.asarray(got), jnp.asarray(ids, jnp.int32)))
    assert at.min() >= 0
    assert at.max() < size
    assert all(got[a] == i for a, i in zip(at, ids, strict=True) if i < 12)


def tree(rows):
    return {
        "item_encoder": {"id_embedding": rows, "adapter": {"query": jnp.ones((9, 2))}},
        "backbone": {"kernel": jnp.ones((9, 3))},  # as many rows as items, and yet no item's
    }


def test_take_and_put_move_the_rows_of_items_alone():
    rows = jnp.arange(27.0).reshape(9, 3)
    ids = jnp.asarray([1, 4, 8, 9, 9], jnp.int32)
    part = catalogue.take(tree(rows), ids, TABLE)
    np.testing.assert_array_equal(part["item_encoder"]["id_embedding"][:3], rows[np.array([1, 4, 8])])
    assert part["backbone"]["kernel"].shape == (9, 3)
    changed = jax.tree.map(lambda x: x + 100, part)
    whole = catalogue.put(tree(rows), changed, ids, TABLE, jax.random.key(0))
    expected = np.array(rows)
    expected[[1, 4, 8]] += 100
    np.testing.assert_array_equal(whole["item_encoder"]["id_embedding"], expected)
    np.testing.assert_array_equal(whole["backbone"]["kernel"], 101)
    np.testing.assert_array_equal(whole["item_encoder"]["adapter"]["query"], 101)


@pytest.mark.parametrize("ids", [None, jnp.arange(9, dtype=jnp.int32)])
def test_bfloat16_rows_are_worked_on_in_float32_and_come_back_as_they_were(ids):
    rows = jax.random.normal(jax.random.key(1), (9, 3)).astype(jnp.bfloat16)
    part = catalogue.take(tree(rows), ids, TABLE)
    assert part["item_encoder"]["id_embedding"].dtype == jnp.float32
    back = catalogue.put(tree(rows), part, ids, TABLE, jax.random.key(0))["item_encoder"]["id_embedding"]
    assert back.dtype == jnp.bfloat16
    np.testing.assert_array_equal(back, rows)


def test_stochastic_rounding_is_right_on_average_and_to_a_neighbour():
    x = jnp.asarray([1.0 + 2**-10, -3.3, 1e-30, 0.0, 65504.123], jnp.float32)
    item = jnp.zeros(1, jnp.int32)
    draw = jax.vmap(lambda key: catalogue.round_stochastically(key, x[None], item)[0])
    many = draw(jax.random.split(jax.random.key(0), 4096))
    many = np.asarray(many, np.float64)
    below, above = many.min(axis=0), many.max(axis=0)
    assert np.all(below <= x)
    assert np.all(x <= above)
    assert all(len(set(column)) <= 2 for column in many.T)
    step = np.maximum(above - below, 1e-300)
    # The mean of 4,096 draws of a step's length has a standard error of at most step / 128.
    assert np.all(np.abs(many.mean(axis=0) - np.asarray(x, np.float64)) < 5 * step / 128)
    nearest = np.asarray(x.astype(jnp.bfloat16), np.float64)
    assert np.abs(nearest[0] - float(x[0])) > 2**-11, "rounding to nearest loses this update altogether"


def test_stochastic_rounding_keeps_what_is_not_finite():
    x = jnp.asarray([np.inf, -np.inf, np.nan], jnp.float32)
    got = np.asarray(catalogue.round_stochastically(jax.random.key(0), x[:, None], jnp.arange(3)), np.float32)
    assert got[0] == np.inf
    assert got[1] == -np.inf
    assert np.isnan(got[2])


def test_stochastic_rounding_follows_the_item_and_not_its_place():
    x = jnp.full((6, 4), 1.0 + 2**-9 + 2**-10)
    draw = lambda ids: catalogue.round_stochastically(jax.random.key(1), x, jnp.asarray(ids))  # noqa: E731
    ids = np.asarray([5, 9, 2, 7, 1, 4])
    order = np.asarray([3, 1, 0, 5, 2, 4])
    np.testing.assert_array_equal(draw(ids)[order], draw(ids[order]))
    assert len(np.unique(np.asarray(draw(ids), np.float32))) == 2
