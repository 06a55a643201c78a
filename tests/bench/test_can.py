"""The virtual CAN wire and what hangs on it: exact times, arbitration, the emulators' frames as cantools reads them."""

from __future__ import annotations

from typing import Any

import cantools
import pytest
from bench.plant.can import wire_bits
from hal.can import checksum, frame_bits
from hypothesis import given
from hypothesis import strategies as st

from bench.plant import config
from bench.plant.plant import VirtualPlant
from hal.canrows import Frame
from hal.profile import PROFILE_DIR

S, MS = 1_000_000_000, 1_000_000
PCS = cantools.database.load_file(PROFILE_DIR / "generic_can_pcs.dbc")


def plant(*kinds: str, bitrate: int = 500_000, **params: float) -> VirtualPlant:
    raw = config.builtin() | {
        "ports": {"a": {}, "c": {"bitrate": bitrate}},
        "devices": [{"kind": "meter", "port": "a", "unit": 1}, *({"kind": k, "port": "c", "unit": 1} for k in kinds)],
        "params": {"battery.energy_wh": 100e3, "pcs.s_rated_va": 100e3} | {k.replace("__", "."): v for k, v in params.items()},
        "load": {"trace": 300e3},
    }
    v = VirtualPlant(raw)
    v.start(S)
    v.rx("c", b"S6\rO\r", S)
    return v


def lines(v: VirtualPlant, t_ns: int) -> list[tuple[int, bytes]]:
    return [(t, data) for port, data, t in v.run(t_ns) if port == 2]


def frames(v: VirtualPlant, t_ns: int) -> list[tuple[int, int, bytes]]:
    return [(t, int(d[1:4], 16), bytes.fromhex(d[5:-1].decode())) for t, d in lines(v, t_ns) if d[:1] == b"t"]


@given(st.integers(0, 2**29 - 1), st.binary(max_size=8), st.booleans(), st.booleans())
def test_both_sides_count_the_same_bits(number: int, data: bytes, ext: bool, rtr: bool) -> None:
    number = number if ext else number & 0x7FF
    assert wire_bits(number, data, ext, rtr) == frame_bits(Frame(number, data, ext, rtr))


def test_a_burst_stands_on_the_wire_frame_by_frame() -> None:
    v = plant("bms")
    got = frames(v, 2 * S)
    assert [f[1] for f in got] == [0x351, 0x355, 0x356, 0x359, 0x35C, 0x35E]
    at = S + 100 * MS
    for t, number, data in got:
        bits = wire_bits(number, data)
        assert t == at + (bits - 3) * 2000
        at += bits * 2000
    assert len(frames(v, 10 * S)) == 6 * 8  # once a second


def test_the_burst_says_what_the_battery_is() -> None:
    v = plant("bms", battery__soc=0.63, battery__temp_c=31.0)
    got = {number: data for _, number, data in frames(v, S + 200 * MS)}
    le = lambda d, i: int.from_bytes(d[i : i + 2], "little", signed=True)  # noqa: E731
    assert (le(got[0x355], 0), le(got[0x355], 2)) == (63, 100)
    now = v.now()
    pack_v = now["v_v"] * 16 / 250
    assert le(got[0x356], 0) / 100 == pytest.approx(pack_v, abs=0.01) and 40 < pack_v < 58.4
    assert le(got[0x356], 4) == 310
    assert le(got[0x351], 2) / 10 * pack_v == pytest.approx(100e3, rel=0.01)  # 1 C
    assert le(got[0x351], 2) / 10 * pack_v <= 100e3 * (1 + 1e-3)
    assert got[0x35C][0] == 0xC0 and got[0x359][5:7] == b"PN" and got[0x359][:4] == bytes(4)


def test_the_lowest_identifier_wins_and_nobody_is_interrupted() -> None:
    v = plant("bms", "pcs")
    at = S + 100 * MS
    lines(v, at - 1)
    v.rx("c", b"t70080000000000000000\rt00180000000000000000\r", at)  # the adapter sends in its own order
    order = [number for _, number, _ in frames(v, at + 9 * MS)]
    # 0x351 (a tie at the instant the bus is free: lowest first), 0x355, ..., and the feedback 0x180 as soon as it is queued at 103 ms
    assert order == [0x351, 0x355, 0x356, 0x359, 0x35C, 0x35E, 0x180]
    assert v.counters()["c"]["no_device"] == 2


def test_a_frame_of_the_master_waits_for_the_one_on_the_wire_and_for_no_higher_identifier() -> None:
    v = plant("bms")
    at = S + 100 * MS
    v.rx("c", b"t3050\r", at)  # the burst is queued at this very instant, and 0x351 has begun
    got = frames(v, at + 5 * MS)
    first, own, second = wire_bits(0x351, got[0][2]), wire_bits(0x305, b""), wire_bits(0x355, got[1][2])
    assert [t for t, *_ in got[:2]] == [at + (first - 3) * 2000, at + (first + own + second - 3) * 2000]
    assert v.counters()["c"]["requests"] == 1


def command(power: float, counter: int, operate: int = 1, enable: int = 1) -> bytes:
    values = {"ActivePower": power, "ReactivePower": 0, "Enable": enable, "Operate": operate, "Counter": counter % 16, "Checksum": 0}
    data = bytearray(PCS.encode_message("PcsCommand", values))
    data[7] = checksum("crc8_j1850", bytes(data), 7)
    return b"t2008" + data.hex().upper().encode() + b"\r"


def test_the_converter_obeys_a_whole_command_and_says_so() -> None:
    v = plant("pcs")
    for k in range(200):
        v.rx("c", command(-20_000, k), S + 10 * MS * k)
    got = frames(v, 3 * S - 10 * MS)
    told = [PCS.decode_message(number, data, decode_choices=False) for _, number, data in got]
    last: dict[str, Any] = [t for (_, number, _), t in zip(got, told, strict=True) if number == 0x180][-1]  # type: ignore[assignment]
    assert last["ActivePower"] == pytest.approx(-20_000, abs=1) and last["State"] == 3  # charge +: it discharges
    assert all(data[7] == checksum("crc8_j1850", data, 7) for _, number, data in got if number == 0x180)
    assert v.now()["batt_w"] == pytest.approx(20_000, abs=1)


@pytest.mark.parametrize("spoil", ["checksum", "counter", "silence"])
def test_the_converter_goes_to_zero_without_commands_it_can_believe(spoil: str) -> None:
    v = plant("pcs")
    for k in range(200):
        v.rx("c", command(-20_000, k), S + 10 * MS * k)
    for k in range(200, 300):
        line = command(-20_000, 199 if spoil == "counter" else k)
        if spoil == "checksum":
            line = line[:-2] + (b"0" if line[-2:-1] != b"0" else b"1") + b"\r"
        if spoil != "silence":
            v.rx("c", line, S + 10 * MS * k)
    v.run(4 * S)
    assert v.now()["batt_w"] == pytest.approx(0.0, abs=1)
    names = v.truth()["event_names"]
    assert "reversion" in [names[c] for c in v.truth()["event_code"]]


def test_hostile_lines_are_refused_and_bounded() -> None:
    v = plant("bms", "pcs")
    lines(v, S + MS)
    v.rx("c", b"t" * 5000 + b"\rt9\rT\rx\r" + bytes(range(256)) * 4 + b"\r", S + MS)
    answers = b"".join(d for _, d in lines(v, S + 2 * MS))
    assert set(answers) <= {7, 13} and len(answers) < 40
    v.rx("c", b"V\rF\r", S + 3 * MS)
    assert b"".join(d for t, d in lines(v, S + 3 * MS) if t >= S + 3 * MS).endswith(b"V1013\rF00\r")


def test_a_full_queue_loses_frames_and_says_so() -> None:
    v = plant("bms", bitrate=10_000)
    lines(v, S + MS)
    v.rx("c", b"t1000\r" * 100, S + MS)
    assert v.counters()["c"]["tx_dropped"] == 36
