"""Block reads: which registers go into one request."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hal.rows import FAST, SLOW, DeviceMap, Field, Read, pack


def device(addresses: list[int], gap: int = 16, most: int = 125, **more: object) -> DeviceMap:
    fields = tuple(Field("soc", a, "u16", rate=SLOW) for a in addresses)
    return DeviceMap("x", "bms", fields, gap_registers=gap, max_registers=most, **more)  # type: ignore[arg-type]


def shapes(reads: tuple[Read, ...]) -> list[tuple[int, int]]:
    return [(r.addr, r.count) for r in reads]


def test_a_read_spans_gaps_that_cost_less_than_another_request() -> None:
    assert shapes(pack(device([0, 10, 26]), 125)) == [(0, 27)]
    assert shapes(pack(device([0, 10, 28]), 125)) == [(0, 11), (28, 1)]  # 17 registers nobody needs
    assert shapes(pack(device([0, 10, 28], gap=0), 125)) == [(0, 1), (10, 1), (28, 1)]


def test_a_read_has_at_most_125_registers() -> None:
    assert shapes(pack(device(list(range(0, 125))), 125)) == [(0, 125)]
    assert shapes(pack(device(list(range(0, 126))), 125)) == [(0, 125), (125, 1)]
    assert shapes(pack(device([0, 100, 124, 125], gap=125), 200)) == [(0, 125), (125, 1)]
    assert shapes(pack(device(list(range(0, 30)), most=20), 125)) == [(0, 20), (20, 10)]


def test_a_block_of_the_device_is_read_in_one_piece() -> None:
    blocks = ((3, 100, 40, SLOW),)
    assert shapes(pack(device([90, 101, 139], blocks=blocks), 125)) == [(100, 40), (90, 1)]
    assert shapes(pack(device([90, 101, 139], blocks=blocks), 30)) == [(90, 12), (139, 1)]  # no room for it in one piece


TYPES = st.sampled_from(["u16", "f32", "u64"])
FIELDS = st.builds(Field, st.just("soc"), st.integers(0, 600), TYPES, st.sampled_from([3, 4]), st.sampled_from([FAST, SLOW]))


@given(st.lists(FIELDS, min_size=1, max_size=30), st.integers(4, 125), st.integers(0, 125))
def test_every_field_is_read_once_in_as_few_requests_as_gaps_and_limits_allow(fields: list[Field], limit: int, gap: int) -> None:
    reads = pack(DeviceMap("x", "bms", tuple(fields), gap_registers=gap), limit)
    assert sorted((f.addr, f.type, f.fc, f.rate) for r in reads for f in r.fields) == sorted((f.addr, f.type, f.fc, f.rate) for f in fields)
    for r in reads:
        assert r.addr == min(f.addr for f in r.fields) and r.count == max(f.addr + f.words for f in r.fields) - r.addr <= limit
        assert all((f.fc, f.rate) == (r.fc, r.rate) for f in r.fields)
        used = {f.addr + k for f in r.fields for k in range(f.words)}
        holes = [b - a - 1 for a, b in itertools.pairwise(sorted(used))]
        assert max(holes, default=0) <= gap
    for a, b in itertools.pairwise(reads):
        if (a.fc, a.rate) == (b.fc, b.rate):  # the next read begins where the one before could not go on
            first = b.fields[0]
            end = a.addr + a.count
            assert first.addr - end > gap or max(end, first.addr + first.words) - a.addr > limit
