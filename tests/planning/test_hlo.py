"""The reader of compiled programs, on texts whose answers are known."""

import numpy as np
import pytest

from spectran_jax.planning import costs, groups, hlo, loops, schedule

MODULE = """HloModule m, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(2)
  %next = s32[] add(%i, %one)
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %r = f32[8,4]{1,0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%sum
  ROOT %t = (s32[], f32[8,4]) tuple(%next, %r)
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%gathered (q: s8[2,64]) -> s8[16,64] {
  %q = s8[2,64]{1,0} parameter(0)
  ROOT %g = s8[16,64]{1,0} all-gather(%q), channel_id=3, replica_groups={}, dimensions={0}
}

%rows (table: f32[1000,4], ids: s32[3], new: f32[3,4]) -> f32[1000,4] {
  %table = f32[1000,4]{1,0} parameter(0)
  %ids = s32[3]{0} parameter(1)
  %new = f32[3,4]{1,0} parameter(2)
  ROOT %s = f32[1000,4]{1,0} scatter(%table, %ids, %new), to_apply=%sum
}

ENTRY %main (x: f32[8,4], y: f32[4,16], big: f32[1000,4], ids: s32[3], new: f32[3,4]) -> f32[1000,4] {
  %x = f32[8,4]{1,0:T(8,128)S(1)} parameter(0), metadata={op_name="a ) \\" b"}
  %y = f32[4,16]{1,0} parameter(1)
  %big = f32[1000,4]{1,0} parameter(2)
  %ids = s32[3]{0} parameter(3)
  %new = f32[3,4]{1,0} parameter(4)
  %zero = s32[] constant(0)
  %start = ((s8[2,64]), s8[16,64], u32[]) async-start(%x), calls=%gathered
  %d = f32[8,16]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %done = s8[16,64]{1,0} async-done(%start)
  %init = (s32[], f32[8,4]) tuple(%zero, %x)
  %loop = (s32[], /*index=1*/f32[8,4]) while(%init), condition=%cond, body=%body
  %a2a = f32[8,16]{1,0} all-to-all(%d), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  ROOT %f = f32[1000,4]{1,0} fusion(%big, %ids, %new), kind=kCustom, calls=%rows
}
"""


@pytest.fixture(scope="module")
def module():
    return hlo.parse(MODULE)


def test_events_in_their_order(module):
    events = schedule.schedule(module, 8)
    found = [(each.kind, each.bytes, each.groups.shape, runs) for each, runs in schedule.collectives(events)]
    assert found == [
        ("all-gather", 2 * 64 * 8, (1, 8), 1),
        ("all-reduce", 8 * 4 * 4, (2, 4), 4),  # 0, 2, 4, 6
        ("all-to-all", 8 * 16 * 4, (2, 4), 1),
    ]
    kinds = [
        type(event).__name__
        for event in events
        if not isinstance(event, schedule.Compute) or event.cost.flops or event.cost.bytes
    ]
    assert kinds == ["Issue", "Compute", "Await", "Loop", "Issue", "Compute"]
    assert not next(event for event in events if isinstance(event, schedule.Issue)).blocks


def test_costs_of_what_moves(module):
    main = module.entry
    of = lambda name: costs.cost(module, main, main.instructions[name])  # noqa: E731
    # x lies in the near memory, so that y is read and the product written.
    assert of("d") == (2 * 8 * 16 * 4, 4 * 16 * 4 + 8 * 16 * 4)
    # A scatter moves three rows (read, changed, written) and their ids, and not the table.
    assert of("f").bytes == 3 * (3 * 4 * 4) + 3 * 4


def test_groups_in_every_notation():
    def read(text, devices=8):
        return groups.replica_groups(hlo.parse_instruction(f"%r = f32[] all-reduce(%x), {text}, to_apply=%s"), devices)

    odd_even = [[0, 2, 4, 6], [1, 3, 5, 7]]
    for text in (
        "replica_groups={{0,2,4,6},{1,3,5,7}}",
        "replica_groups=[2,4]<=[4,2]T(1,0)",
        "replica_groups=mesh['x'=4,'y'=2] {'x'}",
        "replica_groups=mesh['z'=8] {'z':(1)4}",
    ):
        np.testing.assert_array_equal(read(text), odd_even, err_msg=text)
    np.testing.assert_array_equal(read("replica_groups={}"), [range(8)])
    assert groups.mesh_axes(np.asarray(odd_even), {"data": 4, "model": 2}) == ("data",)
    assert groups.mesh_axes(np.asarray([range(8)]), {"data": 8, "model": 1}) == ("data",)
    with pytest.raises(ValueError, match="differ in size"):
        read("replica_groups={{0,1,2},{3}}")


def test_a_loop_that_data_ends_is_not_guessed(module):
    text = MODULE.replace("%n = s32[] constant(7)", "%n = s32[] bitcast(%i)")
    open_ended = hlo.parse(text)
    loop = open_ended.entry.instructions["loop"]
    assert loops.trip_count(open_ended, open_ended.entry, loop) is None
    assert loops.trip_count(module, module.entry, module.entry.instructions["loop"]) == 4
    counted = [
        runs for each, runs in schedule.collectives(schedule.schedule(open_ended, 8)) if each.kind == "all-reduce"
    ]
    assert counted == [None]
    assert len(list(schedule.open_loops(schedule.schedule(open_ended, 8)))) == 1
    assert not list(schedule.open_loops(schedule.schedule(module, 8)))


def test_a_loop_that_data_ends_is_not_lost_beside_a_costlier_branch():
    text = MODULE.replace("%n = s32[] constant(7)", "%n = s32[] bitcast(%i)").replace("ENTRY %main", "%one")
    branches = """
%two (x: f32[8,4]) -> f32[1000,4] {
  %x = f32[8,4]{1,0} parameter(0)
  ROOT %r = f32[999999,4]{1,0} all-reduce(%x), channel_id=9, replica_groups={}, to_apply=%sum
}

ENTRY %main (p: pred[], x: f32[8,4], y: f32[900000,4]) -> f32[1000,4] {
  %p = pred[] parameter(0)
  %x = f32[8,4]{1,0} parameter(1)
  ROOT %c = f32[1000,4] conditional(%p, %x, %x), branch_computations={%one, %two}
}
"""
    events = schedule.schedule(hlo.parse(text + branches.replace("%x = f32[8,4]", "%x = f32[900000,4]", 1)), 8)
    found = [(each.bytes, runs) for each, runs in schedule.collectives(events)]
    assert found == [(900000 * 4 * 4, 1), (8 * 4 * 4, None)]
    assert len(list(schedule.open_loops(events))) == 1


def test_a_product_with_batch_axes_counts_real_numbers_alone():
    # TPU: [6, 8, 4] x [6, 4, 5] as a convolution whose window slides over the six with five holes between them.
    text = """HloModule c
ENTRY %m (l: f32[6,8,4], r: f32[6,4,5]) -> f32[6,8,5] {
  %l = f32[6,8,4]{2,1,0} parameter(0)
  %r = f32[6,4,5]{2,1,0} parameter(1)
  ROOT %c = f32[6,8,5]{2,1,0} convolution(%l, %r), window={size=6 stride=5 pad=0_0 lhs_dilate=6}, dim_labels=0bf_0io->0bf, operand_precision={highest,highest}
}
"""  # noqa: E501
    module = hlo.parse(text)
    assert costs.product_flops(module, module.entry, module.entry.root) == 6 * 2 * 6 * 8 * 4 * 5


ASYNC = """HloModule tpu, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%begin (x: f32[16,4]) -> f32[16,4] {
  %x = f32[16,4]{1,0} parameter(0)
  %r = f32[16,4]{1,0} all-reduce(%x), channel_id=5, replica_groups=[1,8]<=[8], to_apply=%sum
  ROOT %s = f32[16,4]{1,0} custom-call(%r), custom_call_target="AsyncCollectiveStart"
}

%beside (x: f32[16,4], y: f32[4,32]) -> f32[16,32] {
  %x = f32[16,4]{1,0} parameter(0)
  %y = f32[4,32]{1,0} parameter(1)
  %r = f32[16,4]{1,0} all-reduce(%x), channel_id=5, replica_groups=[1,8]<=[8], to_apply=%sum, CONFIG
  ROOT %d = f32[16,32]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%end (x: f32[16,4]) -> f32[16,4] {
  %x = f32[16,4]{1,0} parameter(0)
  %r = f32[16,4]{1,0} all-reduce(%x), channel_id=5, replica_groups=[1,8]<=[8], to_apply=%sum
  ROOT %s = f32[16,4]{1,0} custom-call(%r), custom_call_target="AsyncCollectiveDone"
}

%part (x: f32[16,4], at: s32[]) -> f32[2,4] {
  %x = f32[16,4]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %r = f32[16,4]{1,0} all-reduce(%x), channel_id=6, replica_groups=[1,8]<=[8], to_apply=%sum
  ROOT %s = f32[2,4]{1,0} dynamic-slice(%r, %at, %at), dynamic_slice_sizes={2,4}
}

ENTRY %main (x: f32[16,4], y: f32[4,32], at: s32[]) -> f32[2,4] {
  %x = f32[16,4]{1,0} parameter(0)
  %y = f32[4,32]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %start = f32[16,4]{1,0} fusion(%x), kind=kCustom, calls=%begin
  %d = f32[16,32]{1,0} fusion(%start, %y), kind=kOutput, calls=%beside
  %done = f32[16,4]{1,0} fusion(%start), kind=kCustom, calls=%end
  ROOT %cut = f32[2,4]{1,0} fusion(%done, %at), kind=kCustom, calls=%part
}
""".replace("CONFIG", 'backend_config={"async_collective_fusion_config":{}}')


def at_work(text):
    """The events of a program for eight devices but those that only rename."""
    events = schedule.schedule(hlo.parse(text), 8)
    return [event for event in events if not isinstance(event, schedule.Compute) or event.cost.bytes]


def test_fusions_of_a_tpu_that_run_beside_a_collective():
    """As libtpu writes them: the collective stands in three fusions, and is one that runs while the second computes."""
    begun, beside, ended, cut = at_work(ASYNC)
    assert isinstance(begun, schedule.Issue)
    assert isinstance(ended, schedule.Await)
    assert begun.key == ended.key
    assert not begun.blocks
    assert (begun.collective.kind, begun.collective.bytes) == ("all-reduce", 16 * 4 * 4)
    assert isinstance(beside, schedule.Compute)
    assert beside.cost.flops == 2 * 16 * 32 * 4
    # An all-reduce of which each device keeps its part.
    assert isinstance(cut, schedule.Issue)
    assert cut.blocks
    assert (cut.collective.kind, cut.collective.bytes) == ("reduce-scatter", 16 * 4 * 4)


BESIDE = """HloModule tpu, is_scheduled=true

ENTRY %main (x: bf16[8,4], y: bf16[8,4]) -> bf16[8,4] {
  %x = bf16[8,4]{1,0} parameter(0)
  %y = bf16[8,4]{1,0} parameter(1)
  %begun = ((bf16[8,4]{1,0}), bf16[8,4]{1,0}, u32[], u32[]) all-to-all-start(%x), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %sum = bf16[8,4]{1,0} add(%y, %y)
  %came = bf16[8,4]{1,0} all-to-all-done(%begun)
  ROOT %all = bf16[8,4]{1,0} add(%sum, %came)
}
"""  # noqa: E501


def test_an_all_to_all_that_computing_runs_beside():
    """As libtpu writes it where it is told to."""
    begun, beside, came, _ = at_work(BESIDE)
    assert isinstance(begun, schedule.Issue)
    assert not begun.blocks
    assert (begun.collective.kind, begun.collective.bytes) == ("all-to-all", 8 * 4 * 2)
    assert isinstance(beside, schedule.Compute)
    assert came == schedule.Await(begun.key)
