"""Costs read off optimised HLO: small programs written by hand, and exact figures."""

from __future__ import annotations

import math

import pytest

from mtp_jax.config import Mesh
from mtp_jax.planning import hlo, memory, roofline
from mtp_jax.planning.chips import CHIPS, Chip, Slice, TopologyError
from mtp_jax.planning.collectives import groups, seconds_of
from mtp_jax.planning.drafts import acceptance_needed, decoding_meshes
from mtp_jax.planning.meshes import factorisations

# 1000 operations, 100 bytes of memory and 10 bytes of a link a second.
CHIP = Chip("toy", 1000.0, 1e6, 100.0, 10.0, 2, 4)
SLICE = Slice(CHIP, (2, 2))
TILE = 4 * 8 * 128  # bytes that a float32 array of up to [8, 128] takes
COORDINATES = [(0, 0), (0, 1), (1, 0), (1, 1)]

LOOP = """\
HloModule toy, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%product (p0: f32[5,10], p1: f32[7,10,20], p2: s32[]) -> f32[5,20] {
  %p0 = f32[5,10]{1,0:T(8,128)} parameter(0)
  %p1 = f32[7,10,20]{2,1,0:T(8,128)} parameter(1)
  %p2 = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %layer = f32[1,10,20]{2,1,0} dynamic-slice(%p1, %p2, %zero, %zero), dynamic_slice_sizes={1,10,20}
  %kernel = f32[10,20]{1,0} bitcast(%layer)
  ROOT %y = f32[5,20]{1,0} convolution(%p0, %kernel), dim_labels=bf_io->bf
}

%body (arg: (s32[], f32[5,10], f32[7,10,20])) -> (s32[], f32[5,10], f32[7,10,20]) {
  %arg = (s32[]{:T(128)}, f32[5,10]{1,0:T(8,128)}, f32[7,10,20]{2,1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = f32[5,10]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %stack = f32[7,10,20]{2,1,0:T(8,128)} get-tuple-element(%arg), index=2
  %y = f32[5,20]{1,0:T(8,128)} fusion(%x, %stack, /*index=2*/%n), kind=kOutput, calls=%product
  ROOT %out = (s32[], f32[5,10], f32[7,10,20]) tuple(%n, %x, %stack)
}

%condition (arg.1: (s32[], f32[5,10], f32[7,10,20])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[5,10]{1,0:T(8,128)}, f32[7,10,20]{2,1,0:T(8,128)}) parameter(0)
  %n.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %limit = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%n.1, %limit), direction=LT
}

ENTRY %main (a: f32[5,10], b: f32[7,10,20]) -> (f32[5,10]) {
  %a = f32[5,10]{1,0:T(8,128)} parameter(0)
  %b = f32[7,10,20]{2,1,0:T(8,128)} parameter(1)
  %start = s32[]{:T(128)} constant(2)
  %carried = (s32[], f32[5,10], f32[7,10,20]) tuple(%start, %a, %b)
  %loop = (s32[], f32[5,10], f32[7,10,20]) while(%carried), condition=%condition, body=%body
  %last = f32[5,10]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  ROOT %result = (f32[5,10]{1,0:T(8,128)}) tuple(%last)
}
"""


def entry(*lines: str) -> hlo.Module:
    """A module of one computation."""
    inside = "\n".join(f"  {line}" for line in lines)
    return hlo.parse(f"HloModule m\n\nENTRY %e (a: f32[25]) -> f32[25] {{\n{inside}\n}}\n")


def estimate(module: hlo.Module, **options) -> roofline.Estimate:
    return roofline.estimate(module, SLICE, COORDINATES, **options)


def test_a_loop_costs_its_body_as_often_as_it_runs():
    """From 2 to below 7; of the stack of kernels each trip reads one."""
    module = hlo.parse(LOOP)
    main = module.computations["main"]
    assert hlo.trip_count(module, main, main.by_name["loop"]) == 5
    found = estimate(module)
    moved = TILE + 2 * TILE + TILE + 4  # x, one kernel, y, and the counter
    assert found.flops == 5 * 2 * 5 * 10 * 20
    assert found.hbm_bytes == 5 * moved
    assert found.compute_seconds == pytest.approx(5 * 2.0)
    assert found.seconds == found.hbm_seconds == pytest.approx(5 * moved / 100)
    assert found.open_loops == 0


def test_a_loop_that_depends_on_data_runs_as_often_as_is_said():
    module = hlo.parse(LOOP.replace("direction=LT", "direction=NE"))
    assert estimate(module).open_loops == 1
    assert estimate(module, loop_trips={"": 3}).flops == 3 * estimate(module).flops == 3 * 2000


def test_loops_that_depend_on_data_are_told_apart_by_what_is_traced_within():
    """Those within one that is called, too."""
    text = LOOP.replace("direction=LT", "direction=NE")
    labels = "dim_labels=bf_io->bf"
    named = text.replace(labels, labels + ', metadata={op_name="jit(f)/Model.read/dot"}')
    trips = {"Model.read/": 4, "Model.extend/": 3, "": 1}
    assert estimate(hlo.parse(named), loop_trips=trips).flops == 4 * 2000
    assert estimate(hlo.parse(text), loop_trips=trips).flops == 2000
    # The product is one that another loop has as well.
    lines = named.splitlines()
    for i in (n for n, line in enumerate(lines) if "get-tuple-element(%arg), index=" in line):
        index = lines[i].rsplit("=", 1)[1]
        lines[i] += f', metadata={{op_name="jit(f)/Model.extend/{index}"}}'
    assert estimate(hlo.parse("\n".join(lines)), loop_trips=trips).flops == 3 * 2000


def test_a_loop_may_take_steps_of_two():
    """As those do that multiply and hand on in both directions of a ring."""
    text = LOOP.replace("%n, %x, %stack)\n}", "%n.2, %x, %stack)\n}").replace(
        "  ROOT %out", "  %two = s32[] constant(2)\n  %n.2 = s32[] add(%n, %two)\n  ROOT %out"
    )
    assert estimate(hlo.parse(text)).flops == 3 * 2000  # 2, 4 and 6


def test_arrays_in_the_chips_own_memory_cost_no_traffic():
    text = LOOP.replace("f32[5,10]{1,0:T(8,128)}", "f32[5,10]{1,0:T(8,128)S(1)}")
    assert estimate(hlo.parse(text)).hbm_bytes == 5 * (2 * TILE + TILE + 4)


def test_batched_products_are_counted_without_the_zeros_of_dilation():
    """A product of 8 pairs of matrices, as the compiler for TPUs writes it down."""
    module = entry(
        "%a = f32[8,3,4]{2,1,0} parameter(0)",
        "%b = f32[8,5,4]{2,1,0} parameter(1)",
        "ROOT %c = f32[8,3,5]{2,1,0} convolution(%a, %b),"
        " window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf",
    )
    assert estimate(module).flops == 8 * 2 * 3 * 4 * 5


@pytest.mark.parametrize(("precision", "passes"), [("highest", 6), ("high", 3), ("default", 1)])
def test_precise_products_take_several_passes(precision, passes):
    module = entry(
        "%a = f32[3,4]{1,0:S(1)} parameter(0)",
        "%b = f32[4,5]{1,0:S(1)} parameter(1)",
        "ROOT %c = f32[3,5]{1,0:S(1)} convolution(%a, %b), dim_labels=bf_io->bf,"
        f" operand_precision={{{precision},{precision}}}",
    )
    assert estimate(module).seconds == pytest.approx(passes * 2 * 3 * 4 * 5 / 1000)


PAIR = "replica_groups={{0,1},{2,3}}"


def test_a_collective_is_waited_for():
    """200 bytes over one link: half comes in, at 10 bytes a second, and one hop."""
    module = entry(
        "%a = f32[25]{0:S(1)} parameter(0)",
        f"ROOT %g = f32[50]{{0:S(1)}} all-gather(%a), channel_id=1, {PAIR}, dimensions={{0}}",
    )
    found = estimate(module)
    assert found.traffic == {("all-gather", 200.0, 2): 1}
    assert found.exposed_ici_seconds == found.ici_seconds == pytest.approx(10.0 + 1e-6)


def test_a_collective_hides_behind_what_stands_before_its_end():
    """It takes 10 s, of which the product beside it, of 2.4 s, is spared."""
    module = entry(
        "%a = f32[25]{0:S(1)} parameter(0)",
        "%x = f32[20,10]{1,0:S(1)} parameter(1)",
        "%k = f32[10,6]{1,0:S(1)} parameter(2)",
        f"%s = (f32[25]{{0:S(1)}}, f32[50]{{0:S(1)}}) all-gather-start(%a), channel_id=1, {PAIR}",
        "%y = f32[20,6]{1,0:S(1)} convolution(%x, %k), dim_labels=bf_io->bf",
        "ROOT %d = f32[50]{0:S(1)} all-gather-done(%s)",
    )
    found = estimate(module)
    assert found.traffic == {("all-gather", 200.0, 2): 1}
    assert found.compute_seconds == pytest.approx(2.4)
    assert found.exposed_ici_seconds == pytest.approx(7.6 + 1e-6)
    assert found.seconds == pytest.approx(10.0 + 1e-6)


def test_a_reduce_scatter_costs_half_an_all_reduce():
    """The compiler writes it as an all-reduce of which a fusion keeps a part."""
    text = f"""HloModule m

%all-reduce-scatter.1 (p: f32[50]) -> f32[25] {{
  %p = f32[50]{{0:S(1)}} parameter(0)
  %r = f32[50]{{0:S(1)}} all-reduce(%p), channel_id=3, {PAIR}, to_apply=%add
  %i = s32[] constant(0)
  ROOT %q = f32[25]{{0:S(1)}} dynamic-slice(%r, %i), dynamic_slice_sizes={{25}}
}}

ENTRY %e (a: f32[50]) -> f32[25] {{
  %a = f32[50]{{0:S(1)}} parameter(0)
  ROOT %f = f32[25]{{0:S(1)}} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}}
"""
    found = estimate(hlo.parse(text))
    assert found.traffic == {("reduce-scatter", 200.0, 2): 1}
    assert found.ici_seconds == pytest.approx(10.0 + 1e-6)


def test_collectives_on_a_torus():
    """Rings go both ways where ends are joined, and along all axes at once."""
    ring = Slice(CHIP, (4, 4))
    places = [(x, y) for x in range(4) for y in range(4)]

    def seconds(kind: str, group: list[int], where: Slice = ring) -> float:
        return seconds_of(kind, 1600.0, group, where, places)

    row, whole = [0, 1, 2, 3], list(range(16))
    assert seconds("all-gather", row) == pytest.approx(1200 / 20, rel=1e-6)
    assert seconds("all-gather", whole) == pytest.approx(1500 / 40, rel=1e-6)
    assert seconds("all-reduce", row) == pytest.approx(2 * 1200 / 20, rel=1e-6)
    assert seconds("reduce-scatter", row) == seconds("all-gather", row)
    assert seconds("all-to-all", row) == pytest.approx(1200 / 20 / 4, rel=1e-6)
    line = Slice(Chip("open", 1.0, 1.0, 1.0, 10.0, 2, 8), (4, 4))
    assert seconds("all-gather", row, line) == pytest.approx(1200 / 10, rel=1e-6)
    assert seconds("all-gather", [0, 1]) == pytest.approx(800 / 10, rel=1e-6)  # part of a ring
    assert seconds("all-gather", [0]) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", [(0, 2), (1, 3)]),
        ("replica_groups=[2,2]<=[4], x", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [(0, 1, 2, 3)]),
        ("channel_id=1", [(0, 1, 2, 3)]),
    ],
)
def test_groups_in_every_spelling(text, expected):
    assert groups(text, 4) == expected


def test_memory_at_the_worst_moment():
    """Two of three arrays at a time; views and what an argument has room for count nothing."""
    module = entry(
        "%a = f32[25]{0} parameter(0)",
        "%b = f32[50]{0} broadcast(%a), dimensions={0}",
        "%v = f32[5,10]{1,0} bitcast(%b)",
        "%c = f32[75]{0} concatenate(%v, %a), dimensions={0}",
        "%d = f32[1000]{0:S(1)} broadcast(%c), dimensions={0}",
        "ROOT %e = f32[25]{0} slice(%c), slice={[0:25]}",
    )
    assert memory.temporary_bytes(module) == 4 * (50 + 75)
    assert memory.temporary_bytes(hlo.parse(LOOP)) == TILE  # y, in each trip anew


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("nothing")


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("ratio", [1.0, 1.3, 1.9])
def test_drafts_pay_where_a_call_yields_as_many_tokens_as_it_takes_longer(ratio, width):
    share = acceptance_needed(ratio, width)
    assert sum(share**i for i in range(width)) == pytest.approx(ratio)


def test_drafts_that_cost_nothing_always_pay_and_too_dear_ones_never():
    assert acceptance_needed(0.9, 4) == 0
    assert acceptance_needed(4.1, 4) is None
    assert acceptance_needed(4.0, 4) == pytest.approx(1)


def test_chips_that_a_batch_does_not_need_split_the_matrices():
    found = [(m.data, m.fsdp, m.tensor) for m in decoding_meshes(8, 12)]
    assert found == [(4, 1, 2), (2, 1, 4), (1, 1, 8)]
    assert [m.tensor for m in decoding_meshes(4, 1)] == [4]


@pytest.mark.parametrize("chips", [1, 2, 8, 12, 64])
def test_meshes_are_exactly_the_factorisations(chips):
    found = [(m.data, m.fsdp, m.tensor) for m in factorisations(chips)]
    every = range(1, chips + 1)
    expected = {
        (a, b, c) for a in every for b in every for c in every if math.prod((a, b, c)) == chips
    }
    assert set(found) == expected
    assert len(found) == len(expected)
    assert all(isinstance(m, Mesh) for m in factorisations(chips))


def test_slices_are_joined_where_their_pages_say():
    assert Slice.parse("v5e:4x16").wrapped == (False, True)
    assert Slice.parse("v5p:4x4x8").wrapped == (True, True, True)
    assert Slice.parse("v5p:2x2x4").wrapped == (False, False, False)
    assert Slice.parse("v6e:16x16").chips == 256
    assert CHIPS["v5p"].link_bandwidth == 100e9


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("v4:2x2", "names no known chip: give one of v5e, v5p, v6e"),
        ("v5e", "must give 2 sizes, as in v5e:4x4"),
        ("v5p:4x4", "must give 3 sizes, as in v5p:4x4x4"),
        ("v5e:4xfour", "must give 2 sizes"),
    ],
)
def test_slices_that_do_not_exist_are_refused(name, sentence):
    with pytest.raises(TopologyError, match=sentence):
        Slice.parse(name)
