"""What is said on a Modbus RTU line, heard without a word: `bytes + now -> frames`, sans-I/O as the master is.

A listener does not know who speaks: the same eight bytes may be a request or an answer. What decides is the CRC at the length that
each reading would have, and whether a request of that unit and function is open. Bytes that fit no reading are noise; the next frame is
found again by sliding. Source: Modbus application protocol V1.1b3, 6; Modbus over serial line V1.02, 2.5.1 (t3.5).

Instants are those at which the driver handed the bytes over, less their time on the wire: a USB adapter adds up to 16 ms of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hal.modbus import PyRtuMaster, crc

REQUEST, ANSWER, EXCEPTION, SILENCE, NOISE = "request", "answer", "exception", "no answer", "noise"
MAX_FRAME = 256
QUIET_NS = 50_000_000  # so long without a byte: what is not whole will not become so
READS, WRITES, BOTH = (1, 2, 3, 4), (5, 6, 15, 16), 23
FIXED = {7: 4, 8: 8, 11: 4, 12: 4, 17: 4, 22: 10, 43: 7}  # lengths of other requests, CRC included


@dataclass(frozen=True)
class Heard:
    """One thing that was said, or was not: `kind` is REQUEST, ANSWER, EXCEPTION, SILENCE (a request nobody answered), NOISE.

    t_ns: first bit; gap_ns: silence before it (-1: not known); delay_ns: of an answer, since its request's last bit (-1: not known).
    addr, count: registers of the request, for its answer too (-1: not known); data: their bytes. close: the silence was under t3.5.
    """

    kind: str
    t_ns: int
    raw: bytes
    unit: int = -1
    fc: int = 0
    addr: int = -1
    count: int = -1
    data: bytes = b""
    waddr: int = -1
    written: bytes = b""
    gap_ns: int = -1
    delay_ns: int = -1
    close: bool = False

    @property
    def words(self) -> list[int]:
        """Registers that were read."""
        return [int.from_bytes(self.data[i : i + 2], "big") for i in range(0, len(self.data) - 1, 2)]

    @property
    def written_words(self) -> list[int]:
        """Registers that were to be written."""
        return [int.from_bytes(self.written[i : i + 2], "big") for i in range(0, len(self.written) - 1, 2)]


class Listener:
    """feed() what the port gives, expire() when it gives nothing for QUIET_NS. Holds at most one frame's bytes."""

    def __init__(self, baud: int, bits: int = 11) -> None:
        line = PyRtuMaster(baud, bits)
        self.char_ns, self.t35_ns = int(line.char_ns), int(line.t35_ns)
        self._buf = bytearray()
        self._at: list[int] = []  # when each byte's last bit was there
        self._noise = bytearray()
        self._noise_ns = 0
        self._end_ns = -1  # of what was heard last
        self._open: Heard | None = None
        self._open_end_ns = 0
        self._heard: list[Heard] = []

    @property
    def open_request(self) -> bool:
        """A request waits for its answer."""
        return self._open is not None

    def feed(self, data: bytes, now_ns: int) -> list[Heard]:
        """Bytes of one read; what is complete by now."""
        if self._at and now_ns - len(data) * self.char_ns - self._at[-1] > QUIET_NS:
            self._parse(final=True)
        for i in range(len(data)):
            at = now_ns - (len(data) - 1 - i) * self.char_ns
            self._at.append(max(at, self._at[-1] if self._at else at))
        self._buf += data
        self._parse(final=False)
        return self._take()

    def expire(self, now_ns: int) -> list[Heard]:
        """Silence: half a frame is noise."""
        if self._at and now_ns - self._at[-1] > QUIET_NS:
            self._parse(final=True)
        return self._take()

    def end(self) -> list[Heard]:
        """Nobody listens any more: what is left, and the request that waits."""
        self._parse(final=True)
        self._unanswered()
        return self._take()

    def _take(self) -> list[Heard]:
        out, self._heard = self._heard, []
        return out

    def _parse(self, *, final: bool) -> None:
        while self._buf:
            length, waiting = self._whole()
            if length:
                self._flush_noise()
                self._frame(length)
            elif waiting and not final:
                return
            else:
                if not self._noise:
                    self._noise_ns = self._at[0] - self.char_ns
                self._noise.append(self._buf[0])
                self._drop(1)
                if len(self._noise) >= MAX_FRAME:
                    self._flush_noise()
        if final:
            self._flush_noise()

    def _whole(self) -> tuple[int, bool]:
        """(length of a frame that is there with its CRC, or 0; True: one may still become whole)."""
        waiting = False
        for length in self._lengths():
            if length > len(self._buf):
                waiting = True
            elif int.from_bytes(self._buf[length - 2 : length], "little") == crc(bytes(self._buf[: length - 2])):
                return length, False
        return 0, waiting

    def _lengths(self) -> Iterable[int]:
        """Every length a frame that begins here could have."""
        b, n = self._buf, len(self._buf)
        if n < 3:
            return [3] if n < 2 or b[1] & 0x7F in (*READS, *WRITES, BOTH, *FIXED) else []
        unit, fc = b[0], b[1]
        if unit > 247:
            return []
        if fc & 0x80:
            return [5]
        out = []
        if fc in READS or fc == BOTH:
            out.append(5 + b[2] if b[2] else 8)
        if fc in READS or fc in WRITES:
            out.append(8)
        if fc in (15, 16):
            out.append(9 + b[6] if n > 6 else 9)
        if fc == BOTH:
            out.append(13 + b[10] if n > 10 else 13)
        if fc in FIXED:
            out.append(FIXED[fc])
            if fc in (17, 43):
                out.append(5 + b[2])
        shorter_first = self._open is None or (self._open.unit, self._open.fc) != (unit, fc)
        return sorted({x for x in out if x <= MAX_FRAME}) if shorter_first else [x for x in out if x <= MAX_FRAME]

    def _drop(self, n: int) -> None:
        del self._buf[:n]
        del self._at[:n]

    def _flush_noise(self) -> None:
        if self._noise:
            self._say(Heard(NOISE, self._noise_ns, bytes(self._noise), gap_ns=self._gap(self._noise_ns)))
            self._end_ns = self._noise_ns + len(self._noise) * self.char_ns
            self._noise.clear()

    def _gap(self, t_ns: int) -> int:
        return max(0, t_ns - self._end_ns) if self._end_ns >= 0 else -1

    def _say(self, heard: Heard) -> None:
        self._heard.append(heard)

    def _frame(self, length: int) -> None:
        raw, end_ns = bytes(self._buf[:length]), self._at[length - 1]
        t_ns = self._at[0] - self.char_ns
        gap_ns = self._gap(t_ns)
        self._drop(length)
        close = 0 <= gap_ns < self.t35_ns
        heard = self._judge(raw, t_ns, gap_ns, close)
        self._say(heard)
        self._end_ns = end_ns
        if heard.kind == REQUEST and heard.unit:
            self._open, self._open_end_ns = heard, end_ns

    def _judge(self, raw: bytes, t_ns: int, gap_ns: int, close: bool) -> Heard:
        """Request or answer: an open request of the same unit and function is answered by what has the shape of its answer."""
        unit, fc = raw[0], raw[1]
        ask = self._open
        if ask is not None and ask.unit == unit and ask.fc == fc & 0x7F and (fc & 0x80 or self._answers(ask, raw)):
            self._open = None
            delay_ns = max(0, t_ns - self._open_end_ns)
            kind = EXCEPTION if fc & 0x80 else ANSWER
            data = raw[2:3] if fc & 0x80 else raw[3:-2] if fc in READS or fc == BOTH else b""
            return Heard(kind, t_ns, raw, unit, fc & 0x7F, ask.addr, ask.count, data, ask.waddr, b"", gap_ns, delay_ns, close)
        request = self._request(raw)
        if request is None:  # an answer to what was asked before we listened
            data = raw[2:3] if fc & 0x80 else raw[3:-2] if fc in READS or fc == BOTH else b""
            return Heard(EXCEPTION if fc & 0x80 else ANSWER, t_ns, raw, unit, fc & 0x7F, data=data, gap_ns=gap_ns, close=close)
        self._unanswered()
        addr, count, waddr, written = request
        return Heard(REQUEST, t_ns, raw, unit, fc, addr, count, b"", waddr, written, gap_ns, -1, close)

    def _unanswered(self) -> None:
        if self._open is not None:
            o = self._open
            self._say(Heard(SILENCE, o.t_ns, o.raw, o.unit, o.fc, o.addr, o.count, b"", o.waddr, o.written))
            self._open = None

    @staticmethod
    def _answers(ask: Heard, raw: bytes) -> bool:
        fc = raw[1]
        if fc in (3, 4, BOTH):
            return len(raw) == 5 + 2 * ask.count and raw[2] == 2 * ask.count
        if fc in (1, 2):
            return len(raw) == 5 + (ask.count + 7) // 8 == 5 + raw[2]
        return fc not in WRITES or raw[2:6] == ask.raw[2:6]

    @staticmethod
    def _request(raw: bytes) -> tuple[int, int, int, bytes] | None:
        """(first register read, how many, first register written, what is written), -1 where there is none; None: no request."""
        fc, n = raw[1], len(raw)

        def word(i: int) -> int:
            return int.from_bytes(raw[i : i + 2], "big")

        if fc & 0x80:
            return None
        if fc in READS:
            return (word(2), word(4), -1, b"") if n == 8 and 1 <= word(4) <= (2000 if fc < 3 else 125) else None
        if fc in (5, 6):
            return -1, -1, word(2), raw[4:6]
        if fc in (15, 16):
            return (-1, -1, word(2), raw[7:-2]) if n > 8 and n == 9 + raw[6] else None
        if fc == BOTH:
            return (word(2), word(4), word(6), raw[11:-2]) if n > 12 and n == 13 + raw[10] else None
        return (-1, -1, -1, b"") if FIXED.get(fc) == n else None
