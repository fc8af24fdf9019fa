"""Rows of a sharded table, asked for and delivered: every request, whatever its skew; gradients go home."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spectran_jax.training import exchange
from spectran_jax.training.partitioning import AXES

ITEMS, D, TOUCHED, FEW = 64, 3, 20, 7


def ids_of(kind, shards):
    rng = np.random.default_rng(shards)
    ids = rng.integers(0, ITEMS, (shards, TOUCHED)).astype(np.int32)
    if kind == "hot":
        ids[:, : TOUCHED * 9 // 10] = 7
    if kind == "one owner":
        ids %= ITEMS // 8
    ids[:, -1] = ITEMS  # no item
    return ids


def fetch(sizes, table, lists):
    """The items of each list of each shard, what a round delivers of them ([S, w, d] a list), and the rounds."""
    numbers = exchange.dealt(sizes, jnp.arange(ITEMS))
    item = jnp.full(ITEMS + 1, ITEMS).at[numbers].set(jnp.arange(ITEMS))
    wanted, requests = exchange.request(sizes, lists)
    rows = table.reshape(sizes.mesh.size, sizes.rows, -1)

    def one(at):
        served = exchange.serve(sizes, requests, at)
        mine = jax.vmap(lambda part, which: part.at[which].get(mode="clip"))(rows, served.mine)
        packed = exchange.pack(sizes, served, mine)
        lists = zip(exchange.arrivals(sizes, requests, at), packed, strict=True)
        return [exchange.deliver(sizes, arrive, each) for arrive, each in lists]

    return [item[each] for each in wanted], one, requests.rounds


@pytest.mark.parametrize("capacity", [0, 1])
def test_every_request_is_served(mesh, capacity):
    sizes = exchange.plan(mesh, ITEMS, [TOUCHED, FEW], capacity)
    table = np.random.default_rng(0).normal(size=(ITEMS, D)).astype(np.float32)

    @jax.jit
    def run(table, lists):
        wanted, one, rounds = fetch(sizes, table, lists)
        step = lambda state: (state[0] + 1, jax.tree.map(jnp.add, state[1], one(state[0])))  # noqa: E731
        return wanted, jax.lax.while_loop(lambda state: state[0] < rounds, step, (1, one(0)))[1], rounds

    placed = jax.device_put(table, NamedSharding(mesh, PartitionSpec(AXES)))
    for kind in ("random", "hot", "one owner"):
        lists = ids_of(kind, mesh.shape["data"]), ids_of("random", mesh.shape["data"])[:, :FEW]
        wanted, got, rounds = run(placed, lists)
        shared_by_all = mesh.shape["model"] == 8  # then each device asks for one of the owner's eight items
        if capacity == 1 and kind == "one owner" and not shared_by_all:
            assert rounds > 1
        for ids, found, came in zip(lists, wanted, got, strict=True):
            for row, items, vectors in zip(ids, np.asarray(found), np.asarray(came), strict=True):
                want = np.unique(row[row < ITEMS])
                np.testing.assert_array_equal(np.sort(items[: len(want)]), want)
                assert (items[len(want) :] == ITEMS).all()
                np.testing.assert_array_equal(vectors[: len(want)], table[items[: len(want)]])


def test_items_in_random_order_need_one_round(mesh):
    items, touched = 8 * 4096, 2_000
    sizes = exchange.plan(mesh, items, [touched])
    rng = np.random.default_rng(0)
    ids = np.stack([rng.choice(items, touched, replace=False) for _ in range(sizes.shards)]).astype(np.int32)
    _, requests = jax.jit(lambda ids: exchange.request(sizes, [ids]))(ids)
    assert int(requests.rounds) == 1
    assert sizes.lists[0].capacity < 2 * touched / 8 / mesh.shape["model"]


@pytest.mark.parametrize("rows", [1, 2, 3, 24, 25, 26, 35, 1_000])
def test_every_row_has_a_number_on_its_owner(rows):
    sizes = exchange.Sizes(types.SimpleNamespace(size=3), rows, ())
    items = np.arange(3 * rows)
    numbers = np.asarray(exchange.dealt(sizes, items))
    np.testing.assert_array_equal(np.sort(numbers), items)
    np.testing.assert_array_equal(numbers // rows, items // rows)
    np.testing.assert_array_equal(exchange._undealt(sizes, numbers % rows), items % rows)
    np.testing.assert_array_equal(exchange.item_ids(sizes, numbers), items)
    assert int(exchange.item_ids(sizes, jnp.int32(3 * rows))) == 3 * rows
    assert int(exchange.dealt(sizes, np.int32(3 * rows))) == 3 * rows
    assert int(exchange._undealt(sizes, jnp.int32(rows))) == rows


def test_popular_items_side_by_side_take_as_many_rounds_as_one_owner_has_to_serve(mesh):
    """All that is wanted are the first items of the catalogue: those of one owner, and hardly more than are wanted."""
    items, touched = 8 * 4096, 512
    sizes = exchange.plan(mesh, items, [touched], capacity=40)
    ids = np.broadcast_to(np.arange(touched, dtype=np.int32), (sizes.shards, touched))
    _, requests = jax.jit(lambda ids: exchange.request(sizes, [ids]))(ids)
    least = -(-touched // mesh.shape["model"] // 40)
    assert least <= int(requests.rounds) <= 4 * least


@pytest.mark.parametrize(
    ("devices", "wanted", "capacity"), [(64, 64_000, 1377), (8, 800, 166), (1, 500, 500), (4, 0, 0)]
)
def test_planned_capacities(devices, wanted, capacity):
    """By hand, of few devices: 1.25 m + 4 sqrt(m), rounded up, for m = 1000 and 100, but no more than there are."""
    mesh = types.SimpleNamespace(size=devices, shape={"data": devices, "model": 1})
    assert exchange.plan(mesh, 10**6 * devices, [wanted]).lists[0].capacity == capacity
    assert exchange.plan(mesh, 10**6 * devices, [wanted], 3).lists[0].capacity == min(3, wanted)


def test_thousands_of_devices_need_no_second_round_either():
    """Items in random order: of all that a thousand devices want of each other, nothing is beyond the capacity."""
    devices, wanted = 1_000, 4_000
    sizes = exchange.plan(types.SimpleNamespace(size=devices, shape={"data": devices, "model": 1}), 10**8, [wanted])
    rng = np.random.default_rng(0)
    owners = (rng.integers(0, 10**8, wanted) // sizes.rows for _ in range(devices))
    largest = max(np.bincount(of_one, minlength=devices).max() for of_one in owners)
    assert 15 < largest <= sizes.lists[0].capacity < 30  # a quarter and four standard deviations above the mean are 14


def test_gradients_go_home_to_the_owner_and_add_up(mesh):
    ids = ids_of("hot", mesh.shape["data"])
    sizes = exchange.plan(mesh, ITEMS, [TOUCHED], TOUCHED)
    table = np.random.default_rng(0).normal(size=(ITEMS, D)).astype(np.float32)

    def loss(table):
        wanted, one, _ = fetch(sizes, table, [ids])
        return jnp.sum(jnp.where(wanted[0][..., None] < ITEMS, jnp.sin(one(0)[0]), 0))

    got = jax.jit(jax.grad(loss))(jax.device_put(table, NamedSharding(mesh, PartitionSpec(AXES))))
    want = np.zeros_like(table)
    for row in ids:
        present = np.unique(row[row < ITEMS])
        want[present] += np.cos(table[present])
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_what_goes_home_is_the_gradient_of_what_is_delivered(mesh):
    sizes = exchange.plan(mesh, ITEMS, [TOUCHED])
    _, requests = exchange.request(sizes, [ids_of("hot", mesh.shape["data"])])
    (arrive,), capacity = exchange.arrivals(sizes, requests), sizes.lists[0].capacity
    rng = np.random.default_rng(0)
    packed = jnp.asarray(rng.normal(size=(mesh.size, mesh.size, capacity, D)), jnp.float32)
    came, back = jax.vjp(lambda packed: exchange.deliver(sizes, arrive, packed), packed)
    gradient = jnp.asarray(rng.normal(size=came.shape), jnp.float32)
    np.testing.assert_allclose(exchange.send_home(sizes, arrive, gradient, capacity), back(gradient)[0], rtol=1e-6)


def test_gradients_of_an_item_in_several_lists_are_rounded_once(mesh):
    """1 + 1/256 + 1/256 is a number of bfloat16, and 1 + 1/256 is not."""
    item, parts = 7, (2**-8, 1, 2**-8)
    lists = [np.full((mesh.shape["data"], 1), item, np.int32)] * len(parts)
    sizes = exchange.plan(mesh, ITEMS, [1] * len(parts))

    def loss(table):
        _, one, _ = fetch(sizes, table, lists)
        return sum(jnp.sum(came[0, 0]) * part for came, part in zip(one(0), parts, strict=True))

    table = jax.device_put(jnp.zeros((ITEMS, D), jnp.bfloat16), NamedSharding(mesh, PartitionSpec(AXES)))
    exact = {"xla_allow_excess_precision": False}  # a CPU would add in float32 whatever is written
    got = jax.jit(jax.grad(loss), compiler_options=exact)(table)
    assert (np.asarray(got[item], np.float32) == sum(parts)).all()
