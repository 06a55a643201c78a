"""Wire time of Modbus transactions and the latency they add up to. Arithmetic only; hal/plan.py places the
transactions.

Source: Modbus over serial line V1.02, clause 2.5.1 (characters of 11 bits, t3.5 fixed at 1.75 ms above 19200 baud).
"""

from __future__ import annotations

from dataclasses import dataclass

SETTLE = 2.303  # ln 10: a first-order lag has 90 % of its step behind it after 2.303 tau


@dataclass(frozen=True)
class Line:
    """A serial line's speed: char_ms a character, t35_ms of silence before a request is one, lead_ms before a request's first bit."""

    baud: int
    bits: int  # a character, start and stop included
    lead_ms: float = 0.0  # the driver of an RS-485 port takes so long to take the line

    @property
    def char_ms(self) -> float:
        return self.bits * 1000.0 / self.baud

    @property
    def t35_ms(self) -> float:
        return 1.75 if self.baud > 19200 else 3.5 * self.char_ms

    def travel_ms(self, chars: int) -> float:
        """How long so many characters are on their way."""
        return chars * self.char_ms

    def room(self, budget_ms: float, turnaround_ms: float) -> int:
        """How many registers one read may have to fit `budget_ms`."""
        chars = int((budget_ms - self.lead_ms - 8 * self.char_ms - self.t35_ms - turnaround_ms) / self.char_ms + 1e-9)
        return max(0, min(125, (chars - 5) // 2))


@dataclass(frozen=True)
class TcpLine(Line):
    """A connection in a line's place: latency_ms there and back, half of it each way, whatever the length; no silence to keep."""

    baud: int = 0
    bits: int = 8
    latency_ms: float = 1.0

    @property
    def char_ms(self) -> float:
        return 0.0

    @property
    def t35_ms(self) -> float:
        return 0.0

    def travel_ms(self, chars: int) -> float:
        return 0.5 * self.latency_ms

    def room(self, budget_ms: float, turnaround_ms: float) -> int:
        return 125 if self.latency_ms + turnaround_ms <= budget_ms else 0


def request_chars(fc: int, write_registers: int = 0) -> int:
    """Characters of a request: 8 for reads and FC06, 9 + 2N for FC16, 13 + 2N for FC23."""
    return {3: 8, 4: 8, 6: 8, 16: 9 + 2 * write_registers, 23: 13 + 2 * write_registers}[fc]


def answer_chars(fc: int, read_registers: int = 0) -> int:
    """Characters of a good answer: 5 + 2N for reads, 8 for writes."""
    return 8 if fc in (6, 16) else 5 + 2 * read_registers


@dataclass(frozen=True)
class WireTime:
    """One transaction on one line, in milliseconds."""

    line: Line
    request: int  # characters, as RTU has them
    answer: int
    turnaround_ms: float

    @property
    def request_ms(self) -> float:
        return self.line.lead_ms + self.line.travel_ms(self.request)

    @property
    def answer_ms(self) -> float:
        return self.line.travel_ms(self.answer)

    @property
    def nominal_ms(self) -> float:
        """From the request's first bit to the answer's last."""
        return self.request_ms + self.line.t35_ms + self.turnaround_ms + self.answer_ms

    @property
    def total_ms(self) -> float:
        """... and the silence before the next request."""
        return self.nominal_ms + self.line.t35_ms

    def arithmetic(self, silence: bool = True) -> str:
        t35 = f" + t3.5 {self.line.t35_ms:.3f}" if self.line.t35_ms else ""
        lead_ms = self.line.lead_ms
        text = (f"RTS lead {lead_ms:g} + " if lead_ms else "") + f"request {self.request_ms - lead_ms:.3f}{t35}"
        if self.turnaround_ms:
            text += f" + turnaround {self.turnaround_ms:.3f}"
        text += f" + answer {self.answer_ms:.3f}"
        if silence:
            return text + f"{t35} = {self.total_ms:.3f} ms"
        return text + f" = {self.nominal_ms:.3f} ms"


@dataclass(frozen=True)
class Latency:
    """constant + U(0, tick_ms) + U(0, update_ms); `late`: (delay_ms, share) of ticks whose constant is larger."""

    constant_ms: float
    tick_ms: float
    update_ms: float = 0.0
    late: tuple[tuple[float, float], ...] = ()

    def _below(self, x: float) -> float:
        """P(U(0, a) + U(0, b) <= x): a trapezoid's integral, exact."""
        a, b = max(self.tick_ms, self.update_ms), min(self.tick_ms, self.update_ms)
        if x <= 0.0 or x >= a + b:
            return 0.0 if x <= 0.0 else 1.0
        if b <= 0.0:
            return x / a
        if x < b:
            return x * x / (2.0 * a * b)
        if x <= a:
            return (x - 0.5 * b) / a
        rest = a + b - x
        return 1.0 - rest * rest / (2.0 * a * b)

    def quantile(self, q: float) -> float:
        """Milliseconds below which a share q of load steps is answered."""
        lo, hi = 0.0, self.max_ms - self.constant_ms
        in_place = 1.0 - sum(share for _, share in self.late)
        for _ in range(100):
            x = 0.5 * (lo + hi)
            share = in_place * self._below(x) + sum(s * self._below(x - delay) for delay, s in self.late)
            lo, hi = (x, hi) if share < q else (lo, x)
        return self.constant_ms + 0.5 * (lo + hi)

    @property
    def max_ms(self) -> float:
        return self.constant_ms + self.tick_ms + self.update_ms + max((d for d, s in self.late if s > 0.0), default=0.0)

    def figures(self) -> dict[str, float]:
        return {
            "p50": round(self.quantile(0.5), 3),
            "p99": round(self.quantile(0.99), 3),
            "max": round(self.max_ms, 3),
        }
