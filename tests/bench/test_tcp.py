"""The virtual cabinet's Modbus TCP server in exact virtual time: latency, framing, what it makes of a broken stream, faults."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from bench.plant.config import ConfigError, builtin, parse
from bench.plant.plant import VirtualPlant
from tests.bench.rtu import M704, MS, S
from tests.bench.rtu import plant as rtu_plant


def plant(params: dict[str, float] | None = None, **more: Any) -> VirtualPlant:
    return rtu_plant(params=params, ports={"a": {"tcp": True}, "b": {"tcp": True}}, **more)


def read(unit: int, addr: int, n: int, fc: int = 3, tid: int = 0x1234) -> bytes:
    return struct.pack(">HHHBBHH", tid, 0, 6, unit, fc, addr, n)


def setpoint(watts: int) -> bytes:
    w = watts & 0xFFFFFFFF
    body = struct.pack(">BBHHB4H", 1, 16, M704 + 22, 4, 8, 1, 1, w >> 16, w & 0xFFFF)
    return struct.pack(">HHH", 7, 0, len(body)) + body


def ask(v: VirtualPlant, port: str, request: bytes, t_ns: int = 10 * MS) -> list[tuple[bytes, int]]:
    """[(bytes, ns after t_ns)] of what comes within 100 ms."""
    v.rx(port, request, t_ns)
    return [(data, at - t_ns) for _, data, at in v.run(t_ns + 100 * MS)]


def test_an_answer_is_there_after_latency_and_turnaround() -> None:
    ((answer, took_ns),) = ask(plant({"a.latency_s": 0.004, "meter.turnaround_s": 0.003}), "a", read(1, 0, 12, 4))
    assert took_ns == 7 * MS
    assert answer[:9] == struct.pack(">HHHBBB", 0x1234, 0, 27, 1, 4, 24)
    assert struct.unpack(">6f", answer[9:])[0] == 300e3


def test_a_command_stands_when_its_last_byte_is_there() -> None:
    v = plant({"b.latency_s": 0.004, "pcs.initial_state": 3})
    frame = setpoint(1234)
    v.rx("b", frame[:10], 20 * MS)
    v.rx("b", frame[10:], 21 * MS)
    ((_, answer, at_ns),) = v.run(40 * MS)
    assert answer == frame[:4] + struct.pack(">HBBHH", 6, 1, 16, M704 + 22, 4) and at_ns == 25 * MS
    assert list(v.truth()["cmd_t_end_ns"]) == [23 * MS]
    assert list(v.truth()["cmd_t_effect_ns"]) == [24 * MS]  # the dead time, and no silence before it


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (struct.pack(">BBHH", 1, 3, 39999, 2), 2),
        (struct.pack(">BBHH", 1, 3, 40000, 126), 3),
        (struct.pack(">BBHH", 1, 4, 40000, 2), 1),
        (bytes([1, 0x2B, 14, 1, 0]), 1),
        (bytes([1, 3]), 3),
        (struct.pack(">BBHHBH", 1, 16, M704 + 22, 2, 2, 1), 3),
    ],
)
def test_exceptions(body: bytes, code: int) -> None:
    v = plant()
    ((answer, _),) = ask(v, "b", struct.pack(">HHH", 5, 0, len(body)) + body)
    assert answer == bytes([0, 5, 0, 0, 0, 3, 1, body[1] | 0x80, code])
    assert v.counters()["b"]["exceptions"] == 1


def test_requests_that_come_joined_are_answered_in_order() -> None:
    v = plant()
    got = ask(v, "a", b"".join(read(1, 0, n, 4, tid=n) for n in (2, 4, 6)))
    assert [data[1] for data, _ in got] == [2, 4, 6] and [len(data) for data, _ in got] == [13, 17, 21]


def test_units_0_and_255_are_devices_and_others_are_silence() -> None:
    config = builtin() | {"ports": {"a": {"tcp": True}, "b": {}}}
    config["devices"] = [{"kind": "meter", "port": "a", "unit": 0}, {"kind": "bms", "port": "a", "unit": 255}, config["devices"][2]]
    v = VirtualPlant(config | {"load": {"trace": 1e5}})
    v.start(0)
    assert [ask(v, "a", read(unit, addr, 2), (k + 1) * S)[0][0][6] for k, (unit, addr) in enumerate([(0, 0), (255, 40000)])] == [0, 255]
    assert ask(v, "a", read(1, 0, 2), 5 * S) == [] and v.counters()["a"]["no_device"] == 1
    with pytest.raises(ConfigError, match="must be a number from 1 to 247"):
        parse(config | {"ports": {"a": {}, "b": {}}})


@pytest.mark.parametrize(("protocol", "length"), [(1, 6), (0, 0), (0, 1), (0, 255), (0, 65535)])
def test_a_header_that_none_has_ends_the_connection(protocol: int, length: int) -> None:
    v = plant()
    assert ask(v, "a", struct.pack(">HHHBBHH", 1, protocol, length, 1, 3, 0, 2)) == [(b"", MS // 2)]
    assert v.counters()["a"]["bad_crc"] == 1 and "hang_up" in [v.truth()["event_names"][c] for c in v.truth()["event_code"]]
    assert len(ask(v, "a", read(1, 0, 2), S)) == 1, "the next connection begins anew"


def test_a_server_that_is_down_hangs_up_and_hears_nothing() -> None:
    v = plant()
    v.rx("a", read(1, 0, 2), 10 * MS)
    v.set("a.cut", 1)
    assert [(data, at) for _, data, at in v.run(20 * MS)] == [(b"", 10 * MS)]
    assert ask(v, "a", read(1, 0, 2), S) == []
    v.set("a.cut", 0)
    assert len(ask(v, "a", read(1, 0, 2), 2 * S)) == 1


def test_faults_of_the_stream() -> None:
    (first, t1), (second, t2) = ask(plant({"a.chunk": 1}), "a", read(1, 0, 12, 4))
    assert len(first + second) == 33 and t2 > t1
    ((answer, _),) = ask(plant({"meter.corrupt_p": 1}), "a", read(1, 0, 2))
    assert answer[:2] == struct.pack(">H", 0x1234 ^ 0x5A5A)
    assert ask(plant({"a.drop_p": 1}), "a", read(1, 0, 2)) == []
    right = ask(plant(), "a", read(1, 0, 12))[0][0]
    for seed in range(20):
        ((answer, _),) = ask(plant({"a.bit_error_p": 1}, seed=seed), "a", read(1, 0, 12))
        assert answer[8:] == right[8:] and answer[:8] != right[:8]  # TCP's own checksum keeps the payload
    assert ask(plant({"a.garbage_p": 1}), "a", read(1, 0, 12))[0][0].endswith(right)
    assert right.startswith(ask(plant({"a.truncate_p": 1}), "a", read(1, 0, 12))[0][0])


def test_a_stream_keeps_its_order_whatever_the_latency_does() -> None:
    v = plant({"a.latency_s": 0.1})
    v.rx("a", read(1, 0, 2, tid=1), 10 * MS)
    v.set("a.latency_s", 0.001, 11 * MS)
    v.rx("a", read(1, 0, 2, tid=2), 12 * MS)
    got = v.run(S)
    assert [data[1] for _, data, _ in got] == [1, 2] and got[0][2] >= 60 * MS


def test_bounded_whatever_is_written() -> None:
    v = plant({"a.latency_s": 1})
    for k in range(300):
        v.rx("a", read(1, 0, 12), k * 1000)
    assert v.run(3 * S)[0][1] == b"", "more on its way than it takes: it hangs up"
    assert v.counters()["a"]["bytes_lost"] > 0


def test_any_bytes_are_survived() -> None:
    dice = random.Random(5)
    v = plant()
    t = 0
    for _ in range(3000):
        body = bytes([dice.choice([1, 10]), dice.choice([3, 4, 6, 16, 23])]) + bytes(dice.randrange(256) for _ in range(dice.randrange(40)))
        head = struct.pack(">HHH", dice.randrange(65536), dice.choice([0, 0, 0, 1]), len(body) + dice.choice([0, 0, 0, -1, 5]))
        v.rx(dice.choice("ab"), head + body, t)
        t += dice.choice([MS, 5 * MS])
        v.run(t)
    v.run(t + S)
    assert v.counters()["a"]["requests"] > 100
