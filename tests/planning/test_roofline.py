"""Bounds of time against closed forms."""

import numpy as np
import pytest

from spectran_jax.errors import InputError
from spectran_jax.planning import topologies
from spectran_jax.planning.costs import Cost
from spectran_jax.planning.report import weak_scaling
from spectran_jax.planning.roofline import Roofline, times
from spectran_jax.planning.schedule import Await, Collective, Compute, Issue, Loop


def roofline(name):
    topology = topologies.parse(name)
    return Roofline(topology, np.stack(np.unravel_index(np.arange(topology.chips), topology.shape), axis=-1))


def sent(kind, size, groups, name="c"):
    return Collective(name, kind, size, np.asarray(groups), "")


V = 2.0**30


@pytest.mark.parametrize(
    ("name", "kind", "seconds"),
    [
        ("v5e:16x16", "all-to-all", 16 * V / 8 / 50e9),
        ("v5e:8x8", "all-to-all", 8 * V / 4 / 50e9),  # lines, not rings
        ("v5p:16x16x24", "all-to-all", 24 * V / 8 / 100e9),
        ("v5e:2x2", "all-to-all", V / 2 / 50e9),
        ("v5e:16x16", "all-gather", V * 255 / 256 / 200e9),
        ("v5e:16x16", "reduce-scatter", V * 255 / 256 / 200e9),
        ("v5e:16x16", "all-reduce", 2 * V * 255 / 256 / 200e9),
        ("v5e:8x8", "all-reduce", 2 * V * 63 / 64 / 100e9),
        ("v5p:4x4x4", "all-gather", V * 63 / 64 / 600e9),
        ("v5p:2x2x1", "all-gather", V * 3 / 4 / 200e9),
    ],
)
def test_whole_slices(name, kind, seconds):
    bound = roofline(name)
    assert bound.seconds(sent(kind, V, [range(bound.topology.chips)])) == pytest.approx(seconds, rel=1e-12)


def test_bisection_is_that_of_the_documentation():
    # 1.6 TB/s for a v5e pod: half of the chips send half of their bytes across.
    seconds = roofline("v5e:16x16").seconds(sent("all-to-all", V, [range(256)]))
    assert 128 * V / 2 / seconds == pytest.approx(1.6e12)


def test_groups_along_an_axis_and_strided():
    bound = roofline("v5e:16x16")
    rows = np.arange(256).reshape(16, 16)
    assert bound.seconds(sent("all-gather", V, rows)) == pytest.approx(V * 15 / 16 / 100e9)
    # Every second chip of a ring: two groups share its links.
    apart = rows.reshape(16, 8, 2).transpose(0, 2, 1).reshape(-1, 8)
    assert bound.seconds(sent("all-gather", V, apart)) == pytest.approx(V * 7 / 8 / 50e9)


def test_two_cores_of_a_chip_need_one_copy():
    topology = topologies.parse("tpu7x:4x4x4")
    places = np.stack(np.unravel_index(np.arange(64), topology.shape), axis=-1)
    bound = Roofline(topology, np.column_stack([np.repeat(places, 2, axis=0), np.tile([0, 1], 64)]))
    both, one = np.arange(128)[None], np.arange(128).reshape(64, 2).T
    assert bound.seconds(sent("all-gather", V, both)) == pytest.approx(V * 63 / 64 / 600e9)
    assert bound.seconds(sent("all-reduce", V, both)) == pytest.approx(2 * V * 63 / 64 / 600e9)
    # Two groups, a core of each chip: each has its own copy, over half of the links' time.
    assert bound.seconds(sent("all-gather", V, one)) == pytest.approx(V * 63 / 64 / 300e9)
    # Across the middle of a ring of 4: 64 cores send V / 128 to each of 64 others, over 16 lines with two links each.
    assert bound.seconds(sent("all-to-all", V, both)) == pytest.approx(64 * 64 * V / 128 / (16 * 2) / 100e9)


def test_two_cores_of_a_chip_send_over_its_links():
    topology = topologies.parse("tpu7x:4x4x4")
    chips = np.stack(np.unravel_index(np.arange(64), topology.shape), axis=-1)
    bound = Roofline(topology, np.repeat(chips, 2, axis=0))
    one, both = [[0, 2]], [[0, 2], [1, 3]]  # to the next chip of the last axis
    assert bound.seconds(sent("collective-permute", V, one)) == pytest.approx(V / 100e9)
    assert bound.seconds(sent("collective-permute", V, both)) == pytest.approx(2 * V / 100e9)


def test_permutations_and_latency():
    bound = roofline("v5e:16x16")
    ring = [[i, (i + 1) % 16] for i in range(16)]  # the last axis, around
    assert bound.seconds(sent("collective-permute", V, ring)) == pytest.approx(V / 50e9)
    both_ways = [[0, 2], [1, 2]]  # share the link from 1 to 2
    assert bound.seconds(sent("collective-permute", V, both_ways)) == pytest.approx(2 * V / 50e9)
    opposite = [[i, (i + 8) % 16] for i in range(16)]  # as far either way: 16 x 8 links to go, over 32
    assert bound.seconds(sent("collective-permute", V, opposite)) == pytest.approx(4 * V / 50e9)
    # 8 + 8 links to the farthest chip, and back.
    assert bound.seconds(sent("all-reduce", 4, [range(256)])) == pytest.approx(32 * topologies.HOP_SECONDS)


def test_overlap_counts_between_start_and_end_only():
    bound = roofline("v5e:2x2")
    work = Compute("w", Cost(flops=197e12 * 0.010))  # 10 ms
    exchange = sent("all-to-all", 50e9 * 2 * 0.006, [range(4)])  # 6 ms
    plain = (Issue("a", exchange, True), work)
    apart = (Issue("a", exchange, False), work, Await("a"))
    late = (Issue("a", exchange, False), Await("a"), work)
    assert times(bound, plain) == pytest.approx((0.010, 0.006, 0.016))
    assert times(bound, apart) == pytest.approx((0.010, 0.006, 0.010))
    assert times(bound, late).overlapped == pytest.approx(0.016)
    # Two at once share the network; in a loop each run waits for itself.
    two = (Issue("a", exchange, False), Issue("b", exchange, False), work, Await("a"), Await("b"))
    assert times(bound, two) == pytest.approx((0.010, 0.012, 0.012))
    assert times(bound, (Loop(3, apart), Loop(None, plain))) == pytest.approx((0.030, 0.018, 0.030))
    # What is on its way waits for no loop that only computes, and a loop that sends waits for it.
    around = lambda loop: times(bound, (Issue("b", exchange, False), loop, Await("b"))).overlapped  # noqa: E731
    assert around(Loop(2, (work,))) == pytest.approx(0.020)
    assert around(Loop(2, apart)) == pytest.approx(0.006 + 0.020)


def test_memory_or_flops_whichever_is_longer():
    bound = roofline("v5e:2x2")
    assert bound.compute_seconds(Cost(197e12, 819e9 * 2)) == pytest.approx(2)
    assert bound.compute_seconds(Cost(197e12 * 3, 819e9)) == pytest.approx(3)


def test_weak_scaling_is_against_the_smallest_slice():
    def plan(name, chips, compute, network, overlapped):
        seconds = {"compute": compute, "network": network}
        seconds |= {"without_overlap": compute + network, "with_overlap": overlapped}
        share = {"without_overlap": compute / (compute + network), "with_overlap": compute / overlapped}
        step = {"open_loops": 0, "seconds": seconds, "efficiency": share}
        return {"topology": name, "chips": chips, "programs": {"train step": step}}

    small, large = weak_scaling([plan("b", 256, 4.0, 4.0, 5.0), plan("a", 4, 4.0, 1.0, 4.0)])
    assert (small["topology"], small["weak"]) == ("a", {"without_overlap": 1.0, "with_overlap": 1.0})
    assert large["weak"] == {"without_overlap": 5 / 8, "with_overlap": 4 / 5}
    assert large["efficiency"] == {"without_overlap": 0.5, "with_overlap": 0.8}


def test_unknown_slices_are_named():
    with pytest.raises(InputError, match=r"'v5e:16x15'.*Did you mean v5e:16x16\?.*16x16x24"):
        topologies.parse("v5e:16x15")
