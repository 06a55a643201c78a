"""`trend`: one signal over a span, drawn in characters. Up to 60 s from the ring tick by tick, beyond it from the trends of
the last 24 hours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from _core import image as core
from controller import signals, trends
from controller.canvas import Canvas
from controller.console.context import Context, Refused

AXIS = 11
ROWS = 12
RING_S, MOST_S, LEAST_S = 60.0, 86400.0, 0.01
UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
DEFAULT_S = 60.0


def parse_span(text: str) -> float:
    """Seconds of "10ms", "5s", "10min", "24h" or "30". Raises Refused."""
    word = text.strip().lower()
    number = word.rstrip("abcdefghijklmnopqrstuvwxyz ")
    try:
        span_s = float(number) * UNITS[word[len(number) :].strip() or "s"]
    except (ValueError, KeyError):
        raise Refused(f"{text!r} is no span: write 10ms, 5s, 10min or 24h") from None
    if not LEAST_S <= span_s <= MOST_S:
        raise Refused(f"{text}: a span is 10ms to 24h")
    return span_s


def split_for(words: list[str]) -> tuple[list[str], float | None]:
    """(what stands before `for`, the seconds after it). Raises Refused."""
    at = next((i for i, word in enumerate(words) if word.lower() == "for"), None)
    if at is None:
        return words, None
    if at == len(words) - 1:
        raise Refused("for how long? write `for 30s` or `for 10min`")
    return words[:at], parse_span("".join(words[at + 1 :]))


def find(word: str) -> signals.Signal:
    """The one signal of that name, last part or pattern. Raises Refused with the candidates."""
    try:
        found = signals.select([word])
    except signals.SignalError as e:
        raise Refused(str(e).replace("ballast export RECORD --list shows them", "Tab completes them")) from None
    if len(found) > 1:
        exact = [s for s in found if s.name == f"out.{word}"] or [s for s in found if s.name.rpartition(".")[2] == word]
        if len(exact) == 1:
            return exact[0]
        raise Refused(f"{word} is {len(found)} signals: {', '.join(s.name for s in found[:8])}")
    return found[0]


def run(ctx: Context, words: list[str]) -> Iterable[str]:
    """The command."""
    signal = find(words[0])
    span_s = parse_span(words[1]) if len(words) > 1 else DEFAULT_S
    end_s, t, low, high = _from_ring(ctx, signal, span_s) if span_s <= RING_S else _from_file(ctx, signal, span_s)
    width = min(ctx.line.width, 120) - AXIS - 2
    lines = draw(signal.header, span_s, t - (end_s - span_s), low, high, width, ROWS)
    silent = ctx.silent()
    return [f"{silent}: the picture ends when it last did", *lines] if silent else lines


def _from_ring(ctx: Context, signal: signals.Signal, span_s: float) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    _, image, _ = ctx.running()
    n = max(2, min(round(span_s / 0.01), core.RING_TICKS))
    rows = np.frombuffer(image.drain(max(0, int(image.head) - n))[0], core.record_dtype())
    if not len(rows):
        raise Refused("control has not made its first tick yet")
    values = signal.values(rows).astype(float)
    t = rows["inp"]["t_ns"] / 1e9
    return float(t[-1]), t, values, values


def _from_file(ctx: Context, signal: signals.Signal, span_s: float) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    if signal.status:
        raise Refused(f"{signal.name} is kept for 60 s; `events` tells when limits, alarms and modes came and went")
    end_s = ctx.clock.wall_s()
    t, low, high = trends.read(ctx.store_path.with_name(trends.FILE), signal.name, end_s - span_s, end_s)
    return end_s, t, low.astype(float), high.astype(float)


def draw(title: str, span_s: float, t_s: np.ndarray, low: np.ndarray, high: np.ndarray, width: int, rows: int) -> list[str]:
    """`t_s` counts from the left edge. Each dot column is the range of what fell into it; nothing known: nothing drawn."""
    known = np.isfinite(low) & np.isfinite(high) & (t_s >= 0) & (t_s <= span_s + 1e-9)
    head = f"{title}   last {_span(span_s)}"
    if not known.any():
        return [head, "nothing is known of it in this span"]
    t_s, low, high = t_s[known], low[known], high[known]
    canvas = Canvas(width, rows)
    bottom, top = _range(float(low.min()), float(high.max()))
    column = np.minimum((t_s / span_s * canvas.width).astype(int), canvas.width - 1)

    def y(value: float) -> int:
        return round((top - value) / (top - bottom) * (canvas.height - 1))

    step = max(1, round(canvas.width / max(1, len(t_s))))  # few values: each is a dash, not a dot
    before: tuple[int, float] | None = None
    for x in np.unique(column).tolist():
        inside = column == x
        first, last = y(float(high[inside].max())), y(float(low[inside].min()))
        for k in range(step):
            canvas.span(x + k, first, last, "")
        if before is not None and x - before[0] <= step + 1:  # joined to its neighbour
            canvas.span(x, y(before[1]), y(float(low[inside][0])), "")
        before = (x, float(high[inside][-1]))
    labels = {0: top, rows // 2: (top + bottom) / 2, rows - 1: bottom}
    lines = [f"{head}   last {_short(float(high[-1]))}   lowest {_short(float(low.min()))}   highest {_short(float(high.max()))}"]
    for i, runs in enumerate(canvas.lines()):
        lines.append(f"{_short(labels[i]) if i in labels else '':>{AXIS}}│" + "".join(text for text, _ in runs).rstrip())
    lines.append(" " * AXIS + "└" + f"-{_span(span_s)} ".ljust(width - 4, "─") + " now")
    return lines


def _range(low: float, high: float) -> tuple[float, float]:
    """A little more than what is drawn; never flat."""
    room = 0.05 * (high - low) or max(abs(high) * 1e-3, 1e-6)
    return low - room, high + room


def _short(x: float) -> str:
    return f"{x:.6g}" if math.isfinite(x) and (abs(x) < 1e6 or abs(x) >= 1e9) else f"{x:.4g}"


def _span(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{1e3 * seconds:g} ms"


def complete(ctx: Context, words: list[str]) -> Iterable[str]:
    """Names, then spans."""
    if not words:
        return [s.name for s in signals.known()] + [s.name.rpartition(".")[2] for s in signals.known() if s.name.startswith("out.")]
    return ("100ms", "1s", "10s", "60s", "10min", "1h", "24h") if len(words) == 1 else ()
