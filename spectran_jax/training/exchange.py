"""Rows of item tables that are sharded over all devices, for the shards of a batch that need them, and back.

Item i of N lies on device i // R, R = N / devices: tables are cut into equal runs of rows. Each shard of the batch
lists the distinct items that it touches, and its devices ask the owners for an equal part of them each:

    ids     [devices, capacity]     all-to-all: what each device wants of each owner
    vectors [devices, capacity, d]  all-to-all back, then an all-gather over the devices that share a shard of the batch
    gradients                       the transpose of the same, so each owner sums what concerns its rows

The items may come in several lists, of each micro-batch its own: all are asked for at once, and then an all-to-all
brings the vectors of one list and takes the gradients of another home, while a third is computed with.

Nothing here has the length of the catalogue, and the traffic follows the touched rows. An owner sees each of its items
once, however many devices and lists ask for it, so the optimiser runs there on distinct rows, as it does on one device.

How many items of one owner a device wants depends on the data: `capacity` is planned, not a bound. Where somebody wants
more, the owners' rows are dealt with in `rounds`, a part of them in each, until every request fits: nothing is dropped,
and what a step gives does not depend on the number of rounds. Where many want items that stand side by side, as in a
catalogue that is sorted by popularity, these shall not all be of one round: `dealt` has the order.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from spectran_jax.gather import gather_rows
from spectran_jax.training import catalogue
from spectran_jax.training.catalogue import distinct, place
from spectran_jax.training.partitioning import AXES, row_specs

BATCH_AXIS, SHARE_AXIS = AXES
"""Shards of the batch, and the devices that hold the same one."""

_SLACK = 1.25
_SPREAD = 4
"""Standard deviations above the mean that a request may be, were items spread at random."""
_OVERFULL = 1e-3
"""How many requests of a step may be expected to be larger still: one is enough for another round."""


class ItemList(NamedTuple):
    """The sizes of one list of items, static."""

    wanted: int
    """w: distinct items that it has at most for a shard of the batch, a multiple of the devices that share it."""
    capacity: int
    """c: items of it that a device asks one owner for in one round."""


class Sizes(NamedTuple):
    """The sizes of an exchange, all static."""

    mesh: Mesh
    rows: int
    """R, rows of a table on each device."""
    lists: tuple[ItemList, ...]

    @property
    def shards(self) -> int:
        """Of the batch."""
        return self.mesh.shape[BATCH_AXIS]

    @property
    def capacities(self) -> tuple[int, ...]:
        """Of the lists."""
        return tuple(each.capacity for each in self.lists)

    @property
    def wanted(self) -> int:
        """Items that a shard of the batch asks for at most, over all lists."""
        return sum(each.wanted for each in self.lists)

    @property
    def received(self) -> int:
        """Distinct rows that an owner deals with in one round at most."""
        return min(self.mesh.size * sum(self.capacities), self.rows)


def plan(mesh: Mesh, num_items: int, touched: Sequence[int], capacity: int = 0) -> Sizes:
    """The sizes for a catalogue of `num_items`, a multiple of the devices, and lists of `touched` items at most.

    Args:
      mesh: of `partitioning.AXES`.
      num_items: N, padding included.
      touched: of each list the distinct items that it has for one shard of the batch, at most.
      capacity: of `ItemList`; planned for items in random order if 0.
    """
    devices, sharing = mesh.size, mesh.shape[SHARE_AXIS]
    rows, requests = num_items // devices, devices**2 * len(touched)

    def of_list(items: int) -> ItemList:
        wanted = -(-items // sharing) * sharing
        planned = capacity or _capacity(wanted / sharing / devices, requests)
        return ItemList(wanted, min(planned, rows, wanted // sharing))

    return Sizes(mesh, rows, tuple(map(of_list, touched)))


def _capacity(mean: float, requests: int) -> int:
    """Items of a request, of which a step has so many, one for each pair of devices and list: with thousands of
    devices, what happens to one in a million happens in every step. Requests of items in random order have a Poisson's
    tail, or a thinner one.
    """
    from scipy.special import pdtrc

    planned = int(_SLACK * mean + _SPREAD * mean**0.5) + 1
    while requests * pdtrc(planned, mean) > _OVERFULL:
        planned += 1
    return planned


class Requests(NamedTuple):
    """What a step exchanges."""

    parts: tuple[Int[Array, "D w"], ...]
    """int32 items of each list that each device asks for, as `dealt` numbers them, ascending, filled up with N."""
    rounds: Int[Array, ""]
    """How many rounds it takes."""


class Served(NamedTuple):
    """What an owner deals with in one round."""

    mine: Int[Array, "D C"]
    """int32 distinct rows of the device's own part of a table, ascending, filled up with R."""
    places: tuple[Int[Array, "D D c"], ...]
    """int32: of each list, where each request of each device stands among them."""


_CUT, _WHOLE = PartitionSpec(AXES), PartitionSpec()


def _each(sizes: Sizes, function: Any, *arguments: Any, out: Any = _CUT) -> Any:
    """`function` once a device, on its row of arrays [devices, ...] and on numbers; `out` says how results lie."""
    arguments = jax.tree.map(jnp.asarray, arguments)

    @functools.partial(
        jax.shard_map,
        mesh=sizes.mesh,
        in_specs=jax.tree.map(lambda x: _CUT if x.ndim else _WHOLE, arguments),
        out_specs=out,
        check_vma=False,
    )
    def mapped(*arguments: Any) -> Any:
        result = function(*jax.tree.map(lambda x: x[0] if x.ndim else x, arguments))
        return jax.tree.map(lambda x: x[None] if x.ndim else x, result)

    return mapped(*arguments)


def per_list(array: Array, widths: Sequence[int], axis: int = 1) -> tuple[Array, ...]:
    """What lies side by side along an axis, list by list."""
    return tuple(jnp.split(array, np.cumsum(widths)[:-1], axis))


def dealt(sizes: Sizes, ids: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """The number of each item in the order in which owners deal with their rows; of none, N, it is N.

    An owner's rows are cut into runs of about sqrt(R). First come the first rows of all runs, then the second ones, and
    so on, so that rows side by side are far apart.
    """
    step, each, longer = _columns(sizes)
    owner, row = ids // sizes.rows, ids % sizes.rows
    column = row % step
    number = owner * sizes.rows + column * each + jnp.minimum(column, longer) + row // step
    return jnp.where(ids < sizes.rows * sizes.mesh.size, number, ids)


def item_ids(sizes: Sizes, numbers: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """The items that have these numbers: undoes `dealt`."""
    owner, number = numbers // sizes.rows, numbers % sizes.rows
    return jnp.where(numbers < sizes.rows * sizes.mesh.size, owner * sizes.rows + _undealt(sizes, number), numbers)


def _undealt(sizes: Sizes, numbers: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """The rows of an owner by their numbers on it; R for R."""
    step, each, longer = _columns(sizes)
    after = numbers - longer * (each + 1)  # the longer columns come first
    column = jnp.where(after < 0, numbers // (each + 1), longer + after // each)
    row = (numbers - column * each - jnp.minimum(column, longer)) * step + column
    return jnp.where(numbers < sizes.rows, row, numbers)


def _columns(sizes: Sizes) -> tuple[int, int, int]:
    """How many columns the rows of an owner have, written row by row; how long they are; how many have one more."""
    step = math.isqrt(sizes.rows)
    return step, *divmod(sizes.rows, step)


def request(sizes: Sizes, ids: Sequence[Int[Array, "S T"]]) -> tuple[tuple[Int[Array, "S w"], ...], Requests]:
    """The distinct items of each list of each shard of the batch, and who asks for which.

    Args:
      sizes: what `plan` gave.
      ids: int32 items of each list, with repetitions; N for none.

    Returns:
      The items as `dealt` numbers them, ascending, filled up with N; and the requests.
    """
    numbers = [dealt(sizes, these) for these in ids]
    items = sizes.rows * sizes.mesh.size
    found: list[Array] = []
    # One sort for all lists of a size: a TPU's compiler takes long for each.
    for (each, _), alike in itertools.groupby(
        zip(sizes.lists, numbers, strict=True), lambda pair: (pair[0], pair[1].shape)
    ):
        of_row = lambda row, size=each.wanted: distinct(row, size, items)  # noqa: E731
        found.extend(jax.vmap(jax.vmap(of_row))(jnp.stack([these for _, these in alike])))

    def ask(*parts: Int[Array, "w"]) -> Requests:
        def above(rounds: Array) -> Array:
            """By how many items a request is too large at most, were the rows dealt with in so many rounds."""
            width = -(-sizes.rows // rounds)

            def most(part: Int[Array, "w"]) -> Array:
                first = part - part % sizes.rows % width  # of the run that an item belongs to
                count = jnp.arange(len(part)) - jnp.searchsorted(part, first) + 1
                return jnp.max(jnp.where(part < items, count, 0))

            over = [most(part) - each.capacity for part, each in zip(parts, sizes.lists, strict=True)]
            return jax.lax.pmax(functools.reduce(jnp.maximum, over), AXES)

        enough = jax.lax.while_loop(
            lambda state: state[1] > 0,
            lambda state: (2 * state[0], above(2 * state[0])),
            (jnp.int32(1), above(jnp.int32(1))),
        )
        return Requests(parts, enough[0])

    # The devices of a shard deal out its items, which ascend: a run of them each would be of few owners.
    sharing = sizes.mesh.shape[SHARE_AXIS]
    deal = lambda found: found.reshape(sizes.shards, -1, sharing).swapaxes(1, 2).reshape(sizes.mesh.size, -1)  # noqa: E731
    return tuple(found), _each(sizes, ask, *map(deal, found), out=Requests(_CUT, _WHOLE))  # type: ignore[arg-type]


def serve(sizes: Sizes, requests: Requests, at: Int[Array, ""] | int = 0) -> Served:
    """What owners deal with in round `at`."""

    def exchange(requests: Requests, at: Int[Array, ""]) -> Served:
        lists = zip(requests.parts, sizes.lists, strict=True)
        buckets = [_bucket(sizes, part, each.capacity, requests.rounds, at) for part, each in lists]
        received = _undealt(sizes, jax.lax.all_to_all(jnp.concatenate(buckets, axis=1), AXES, 0, 0))
        mine = distinct(received.reshape(-1), sizes.received, sizes.rows)
        return Served(mine, per_list(place(mine, received), sizes.capacities))

    return _each(sizes, exchange, requests, jnp.int32(at))


def pack(sizes: Sizes, served: Served, vectors: Float[Array, "D C d"]) -> tuple[Float[Array, "D D c d"], ...]:
    """The vectors of the owners' rows as each device asks for them, of each list.

    One gather for all lists, so that the gradients of an item are summed once, in float32.
    """

    def gather(served: Served, vectors: Float[Array, "C d"]) -> tuple[Array, ...]:
        return per_list(gather_rows(vectors, jnp.concatenate(served.places, axis=1)), sizes.capacities)

    return _each(sizes, gather, served, vectors)


def arrivals(sizes: Sizes, requests: Requests, at: Int[Array, ""] | int = 0) -> tuple[Int[Array, "D w"], ...]:
    """Which of the vectors that come in round `at` is each item's, of each list: int32, owner by owner, -1 for none."""

    def exchange(requests: Requests, at: Int[Array, ""]) -> tuple[Array, ...]:
        def of_list(part: Int[Array, "w"], capacity: int) -> Int[Array, "w"]:
            low, high = _bounds(sizes, part, requests.rounds, at)
            owner = jnp.minimum(part // sizes.rows, sizes.mesh.size - 1)
            order = jnp.arange(len(part), dtype=jnp.int32)
            here = (order >= low[owner]) & (order < high[owner])
            return jnp.where(here, owner * capacity + order - low[owner], -1)

        lists = zip(requests.parts, sizes.lists, strict=True)
        return tuple(of_list(part, each.capacity) for part, each in lists)

    return _each(sizes, exchange, requests, jnp.int32(at))


def deliver(sizes: Sizes, arrive: Int[Array, "D w"], packed: Float[Array, "D D c d"]) -> Float[Array, "S w d"]:
    """Vectors of one list's items at the shards that want them, in the order of `request`; 0 for other rounds.

    Args:
      sizes: what `plan` gave.
      arrive: what `arrivals` gave for the list.
      packed: what `pack` gave for the list.
    """
    return unpack(sizes, arrive, swap(sizes, packed))


def send_home(sizes: Sizes, arrive: Int[Array, "D w"], gradient: Float[Array, "S w d"], capacity: int) -> Array:
    """The gradient of `packed` at the owners, [D, D, c, d], from that of what `deliver` makes of it."""
    return swap(sizes, pack_gradient(sizes, arrive, gradient, capacity))


def swap(sizes: Sizes, packed: Float[Array, "D D c d"]) -> Float[Array, "D D c d"]:
    """What every device has for every other, [from, to, ...], at the others, [to, from, ...]: vectors at those who ask
    for them, gradients at the owners. One all-to-all; it is its own transpose."""
    return _each(sizes, lambda packed: jax.lax.all_to_all(packed, AXES, 0, 0), packed)


def unpack(sizes: Sizes, arrive: Int[Array, "D w"], got: Float[Array, "D D c d"]) -> Float[Array, "S w d"]:
    """The vectors of a list in its order, from those that `swap` brought; linear."""

    def exchange(arrive: Int[Array, "w"], got: Float[Array, "D c d"]) -> Array:
        came = got.reshape(-1, got.shape[-1])[jnp.maximum(arrive, 0)]
        mine = jnp.where(arrive[:, None] >= 0, came, 0)
        return jax.lax.all_gather(mine, SHARE_AXIS, axis=1).reshape(-1, mine.shape[-1])  # as they were dealt out

    same = PartitionSpec(BATCH_AXIS)  # on all that share a shard
    return _each(sizes, exchange, arrive, got, out=same)


def pack_gradient(sizes: Sizes, arrive: Int[Array, "D w"], gradient: Float[Array, "S w d"], capacity: int) -> Array:
    """The transpose of `unpack`: what is to be swapped, [D, D, c, d], of a list of this capacity."""
    shape = (sizes.mesh.size, sizes.mesh.size, capacity, gradient.shape[-1])
    got = jnp.zeros(shape, gradient.dtype)
    return jax.vjp(functools.partial(unpack, sizes, arrive), got)[1](gradient)[0]


def _bounds(
    sizes: Sizes, part: Int[Array, "w"], rounds: Int[Array, ""], at: Int[Array, ""] | int
) -> tuple[Int[Array, "D"], Int[Array, "D"]]:
    """Where, in a device's part of a list, the items of each owner that belong to round `at` begin and end."""
    width = -(-sizes.rows // rounds)
    owner = jnp.arange(sizes.mesh.size) * sizes.rows
    first = owner + jnp.minimum(at * width, sizes.rows)
    last = owner + jnp.minimum((at + 1) * width, sizes.rows)
    return jnp.searchsorted(part, first), jnp.searchsorted(part, last)


def _bucket(
    sizes: Sizes, part: Int[Array, "w"], capacity: int, rounds: Int[Array, ""], at: Int[Array, ""] | int
) -> Int[Array, "D c"]:
    """The numbers of the owners' rows that a device asks for of a list, filled up with R."""
    low, high = _bounds(sizes, part, rounds, at)
    order = low[:, None] + jnp.arange(capacity)
    ids = part[jnp.minimum(order, len(part) - 1)]
    return jnp.where(order < high[:, None], ids - jnp.arange(sizes.mesh.size)[:, None] * sizes.rows, sizes.rows)


def take(sizes: Sizes, tree: Any, served: Served, item_params: Sequence[str], *, as_stored: bool = False) -> Any:
    """`catalogue.take` at the owners: the rows that `served` names, [D C, ...], of every table of the tree."""
    local = lambda part, mine: catalogue.take(part, mine, item_params, as_stored=as_stored)  # noqa: E731
    return _at_owners(sizes, local, item_params, tree, served.mine)


def take_numbers(sizes: Sizes, array: Float[Array, "N"], served: Served) -> Float[Array, "D C 1"]:
    """The same of one array of a number an item, as vectors to `pack`."""
    of_owner = lambda part, mine: part.at[mine].get(mode="clip")[:, None]  # noqa: E731
    return _each(sizes, of_owner, array.reshape(sizes.mesh.size, -1), served.mine)


def put(sizes: Sizes, tree: Any, changed: Any, served: Served, item_params: Sequence[str], key: Array) -> Any:
    """`catalogue.put` at the owners: undoes `take`, in place."""

    def back(part: Any, rows: Any, mine: Int[Array, "C"]) -> Any:
        first = jax.lax.axis_index(AXES) * sizes.rows
        return catalogue.put(part, rows, mine, item_params, key, first=first)

    return _at_owners(sizes, back, item_params, tree, changed, served.mine)


def _at_owners(sizes: Sizes, function: Any, item_params: Sequence[str], *arguments: Any) -> Any:
    """`function` once a device, tables being its own rows; the last argument is [devices, ...]."""
    *trees, mine = arguments
    specs = tuple(row_specs(tree, item_params) for tree in trees)
    mapped = jax.shard_map(
        lambda *args: function(*args[:-1], args[-1][0]),
        mesh=sizes.mesh,
        in_specs=(*specs, _CUT),
        out_specs=specs[0],
        check_vma=False,
    )
    return mapped(*trees, mine)
