"""RTU timing, framing, exceptions and the faults of the wire, in exact virtual time."""

import struct

import pytest

from tests.bench.rtu import (
    CHAR_NS,
    M701,
    M704,
    M715,
    MS,
    Master,
    S,
    plant,
    read_frame,
    setpoint_frame,
    with_crc,
    write_frame,
)


def test_meter_answer_takes_8_chars_t35_and_29_chars():
    m = Master(plant())
    answer, took_ns = m.ask("a", read_frame(1, 0, 12))
    assert answer is not None and len(answer) == 29
    assert took_ns == pytest.approx(8 * CHAR_NS + 1.75e6 + 29 * CHAR_NS, abs=50)
    assert took_ns * 1e-6 == pytest.approx(2.633, abs=0.001)


def test_slow_line_waits_three_and_a_half_characters():
    m = Master(plant(ports={"a": {"baud": 9600, "parity": "N", "stop_bits": 1}, "b": {}}))
    _, took_ns = m.ask("a", read_frame(1, 0, 12), wait_ns=200 * MS)
    char_ns = 10 / 9600 * 1e9
    assert took_ns == pytest.approx((8 + 3.5 + 29) * char_ns, rel=1e-6)


def test_turnaround_and_delay_add_up():
    m = Master(plant(params={"meter.turnaround_s": 0.003}))
    _, quick_ns = m.ask("a", read_frame(1, 0, 12))
    m.v.set("meter.delay_answer_s", 0.005)
    _, slow_ns = m.ask("a", read_frame(1, 0, 12))
    assert slow_ns - quick_ns == 5 * MS
    assert quick_ns == pytest.approx(37 * CHAR_NS + 1.75e6 + 3e6, abs=50)


def test_functions_03_and_04_on_the_meter_only():
    m = Master(plant())
    assert m.ask("a", read_frame(1, 0, 12, fc=4))[0][1] == 4
    assert m.ask("b", read_frame(1, 40000, 2, fc=4))[0][1:3] == b"\x84\x01"
    assert m.ask("a", with_crc(b"\x01\x2b\x0e\x01\x00"))[0][1:3] == b"\xab\x01"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (read_frame(1, 39999, 2), 2),
        (read_frame(1, 40354, 2), 2),
        (read_frame(1, 40000, 126), 3),
        (read_frame(1, 40000, 0), 3),
        (write_frame(1, M701 + 10, [1]), 2),
        (write_frame(1, M704 + 33, [0, 5]), 2),
        (write_frame(1, M704 + 22, [7]), 3),
        (write_frame(1, M715 + 8, [9]), 3),
        (with_crc(struct.pack(">BBHHBH", 1, 16, M704 + 22, 2, 2, 1)), 3),
    ],
)
def test_exceptions(frame, code):
    m = Master(plant())
    answer, _ = m.ask("b", frame)
    assert answer == with_crc(bytes([1, frame[1] | 0x80, code]))
    assert m.v.counters()["b"]["exceptions"] == 1


def test_a_refused_write_writes_nothing():
    m = Master(plant())
    assert m.write("b", 1, M704 + 24, [0, 5, 0, 9, 0, 0, 7])[1] == 0x90  # the seventh, WSetEnaRvrt = 7, is no value
    assert m.regs("b", 1, M704 + 24, 4) == [0, 0, 0, 0]


def test_fc06_and_fc23_write_before_read():
    m = Master(plant())
    assert m.ask("b", with_crc(struct.pack(">BBHH", 1, 6, M704 + 27, 77)))[0][1] == 6
    frame = struct.pack(">BBHHHHB2H", 1, 23, M704 + 22, 4, M704 + 24, 2, 4, 0, 1234)
    answer, _ = m.ask("b", with_crc(frame))
    assert struct.unpack(">4H", answer[3:-2]) == (0, 1, 0, 1234)
    m.v.set("pcs.fc23", 0)
    assert m.ask("b", with_crc(frame))[0][1:3] == b"\x97\x01"


def test_bad_crc_and_absent_units_are_silence():
    m = Master(plant())
    frame = bytearray(read_frame(1, 0, 12))
    frame[3] ^= 1
    assert m.ask("a", bytes(frame))[0] is None
    assert m.ask("a", read_frame(77, 0, 12))[0] is None
    c = m.v.counters()["a"]
    assert (c["bad_crc"], c["no_device"], c["requests"]) == (1, 1, 0)


def test_pieces_of_a_frame_are_one_frame():
    v = plant()
    frame = read_frame(1, 0, 12)
    v.rx("a", frame[:3], 0)
    v.rx("a", frame[3:], MS)  # a pause below 3.5 characters' time (1.75 ms)
    assert len(v.run(10 * MS)) == 1
    v.rx("a", frame[:3], 20 * MS)
    v.rx("a", frame[3:], 23 * MS)  # too long: two broken frames
    assert v.run(40 * MS) == []
    assert v.counters()["a"]["bad_crc"] == 2


def test_silence_violation_is_counted_and_answered():
    v = plant()
    v.rx("a", read_frame(1, 0, 12), 0)
    ((_, _, end_ns),) = v.run(5 * MS)
    v.rx("a", read_frame(1, 0, 12), 10 * MS)
    ((_, _, end_ns),) = v.run(10 * MS + 2_700_000)
    v.rx("a", read_frame(1, 0, 12), end_ns + MS)
    assert len(v.run(30 * MS)) == 1
    assert v.counters()["a"]["silence_violations"] == 1


def test_chunked_answers_arrive_as_their_bits_do():
    v = plant(params={"a.chunk": 1})
    v.rx("a", read_frame(1, 0, 12), 0)
    first, second = v.run(20 * MS)
    assert len(first[1]) == 14 and len(second[1]) == 15
    assert second[2] - first[2] == pytest.approx(15 * CHAR_NS, abs=20)
    whole = first[1] + second[1]
    assert whole == with_crc(whole[:-2])


def test_echo_comes_when_the_masters_bits_are_out():
    v = plant(params={"a.echo": 1})
    frame = read_frame(1, 0, 12)
    v.rx("a", frame, 0)
    echo, answer = v.run(20 * MS)
    assert echo[1] == frame and echo[2] == pytest.approx(8 * CHAR_NS, abs=20)
    assert len(answer[1]) == 29


@pytest.mark.parametrize("key", ["a.drop_p", "a.truncate_p", "a.garbage_p", "meter.corrupt_p", "a.bit_error_p"])
def test_wire_faults_spoil_answers_and_are_counted(key):
    m = Master(plant(params={key: 1}))
    answer, _ = m.ask("a", read_frame(1, 0, 12))
    assert answer is None or answer != with_crc(answer[:-2])
    assert m.v.counters()["a"]["faults_injected"] >= 1


def test_a_fault_with_a_chance_repeats_for_a_seed():
    def run(seed):
        m = Master(plant(params={"a.drop_p": 0.5}, seed=seed))
        return [m.ask("a", read_frame(1, 0, 12))[0] is None for _ in range(40)]

    assert run(3) == run(3) != run(4)


def test_late_answer_reaches_the_master_after_its_next_request():
    v = plant(params={"pcs.delay_answer_s": 0.05})
    v.rx("b", read_frame(1, 40000, 2), 0)
    v.rx("b", setpoint_frame(1000), 20 * MS)
    answers = v.run(S)
    assert [a[1][1] for a in answers] == [3, 16]


def test_queue_of_answers_is_bounded():
    v = plant(params={"pcs.delay_answer_s": 60})
    for k in range(20):
        v.rx("b", read_frame(1, 40000, 2), k * 10 * MS)
    v.run(S)
    assert v.counters()["b"]["tx_dropped"] == 12


def test_any_bytes_are_survived():
    import random

    dice = random.Random(5)
    v = plant()
    t = 0
    for _ in range(3000):
        body = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 40)))
        frame = with_crc(bytes([dice.choice([0, 1, 10])]) + bytes([dice.choice([3, 4, 6, 16, 23])]) + body)
        v.rx(dice.choice("ab"), frame, t)
        t += dice.choice([MS, 5 * MS])
        v.run(t)
    v.run(t + S)
    assert v.counters()["a"]["requests"] > 100
