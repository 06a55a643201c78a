"""One tick of the plan drawn in characters: a row a bus, 80 columns, plain ASCII, so that a serial terminal shows it too."""

from __future__ import annotations

from collections.abc import Sequence

from hal.canplan import CanTable
from hal.plantypes import Placed, Plan

NAME = 8  # columns before the tick
CELLS = 70  # of the tick: 7 a millisecond
REQUEST, COMMAND, WAIT, ANSWER, SILENCE = "R", "C", "-", "A", "."
AFTER_REQUEST, AFTER_WAIT, AFTER_ANSWER = "r", "~", "a"
CAN_FRAME, CAN_WAIT, CAN_ANY, BEYOND = "#", "=", ":", ">"
STEP, LATEST, SENT, MAY = "K", "L", "E", "_"


def draw(plan: Plan) -> list[str]:
    """The lines: ms on top, a row a bus in the order of the site, the kernel's row, what the letters mean."""
    rows = [_bus(plan, t.spec.name, isinstance(t, CanTable)) for t in plan.tables]
    return [*_scale(plan), *rows, _kernel(plan), *_legend(rows)]


def _scale(plan: Plan) -> list[str]:
    marks, numbers = ["-"] * CELLS, [" "] * (CELLS + 1)
    for ms in range(round(plan.tick_ms) + 1):
        at = round(ms * CELLS / plan.tick_ms)
        if at < CELLS:
            marks[at] = "+"
        first = min(at, CELLS + 1 - len(str(ms)))  # the last one ends at its mark: a terminal of 80 columns must not wrap
        numbers[first : first + len(str(ms))] = str(ms)
    return [f"{'ms':<{NAME}}{''.join(numbers).rstrip()}", f"{'':<{NAME}}{''.join(marks)}+"]


def _bus(plan: Plan, name: str, can: bool) -> str:
    cells = [CAN_ANY if can else " "] * (CELLS + 1)
    drawn = [p for p in plan.timeline if p.bus == name]
    after = [p for p in drawn if p.kind == "after"]
    drawn = [p for p in drawn if p.kind != "after"]
    if after:  # they take turns in one place: the longest shows how much of it they need
        drawn.insert(0, max(after, key=lambda p: p.end_ms))
    for p in drawn:
        for letter, start_ms, end_ms in spans(p):
            _fill(cells, letter, start_ms, end_ms, plan.tick_ms)
    label = name if len(name) < NAME - 1 else name[: NAME - 2] + "*"
    return f"{label:<{NAME}}{''.join(cells)}".rstrip()


def spans(p: Placed) -> list[tuple[str, float, float]]:
    """(letter, from, to) in ms: what a transaction does on its wire, one after the other."""
    if p.kind == "can":
        return [(CAN_WAIT, p.sent_ms, p.end_ms), (CAN_FRAME, p.start_ms, p.sent_ms)]
    after = p.kind == "after"
    request = AFTER_REQUEST if after else COMMAND if p.kind == "command" else REQUEST
    return [
        (SILENCE, p.end_ms, p.free_ms),
        (AFTER_WAIT if after else WAIT, p.sent_ms, p.answer_ms),
        (AFTER_ANSWER if after else ANSWER, p.answer_ms, p.end_ms),
        (request, p.start_ms, p.sent_ms),
    ]


def _fill(cells: list[str], letter: str, start_ms: float, end_ms: float, tick_ms: float) -> None:
    """A span that is there at all has one cell at least; what reaches into the next tick ends in `>`."""
    if end_ms - start_ms <= 0.0:
        return
    first = int(start_ms * CELLS / tick_ms + 1e-9)
    last = max(first + 1, round(end_ms * CELLS / tick_ms))
    for i in range(first, min(last, CELLS)):
        cells[i] = letter
    if last > CELLS:
        cells[CELLS] = BEYOND


def _kernel(plan: Plan) -> str:
    cells = [" "] * (CELLS + 1)
    _fill(cells, MAY, plan.step_ms, plan.step_deadline_ms, plan.tick_ms)
    for letter, at_ms in ((LATEST, plan.step_deadline_ms), (SENT, plan.command_end_ms), (STEP, plan.step_ms)):
        at = int(at_ms * CELLS / plan.tick_ms + 1e-9)
        cells[min(at, CELLS)] = letter if at < CELLS else BEYOND
    return f"{'kernel':<{NAME}}{''.join(cells)}".rstrip()


def _legend(rows: Sequence[str]) -> list[str]:
    """What stands in these rows, and no more."""
    body = "".join(row[NAME:] for row in rows)
    words = (
        (REQUEST, "R request"), (COMMAND, "C command"), (WAIT, "- t3.5 and turnaround"), (ANSWER, "A answer"), (SILENCE, ". silence"),
        (AFTER_REQUEST, "r ~ a the same of the after-slot, the longest of those that take turns"),
        (CAN_FRAME, "# our CAN frame"), (CAN_WAIT, "= it may wait so long for the bus"), (CAN_ANY, ": other frames, at any time"),
        (BEYOND, "> on into the next tick"),
    )  # fmt: skip
    known = [text for letter, text in words if letter in body or (letter == AFTER_REQUEST and set(body) & {AFTER_WAIT, AFTER_ANSWER})]
    known.append(f"{STEP} kernel steps, {LATEST} at the latest, {SENT} the command's last bit")
    lines, line = [], ""
    for text in known:
        if line and len(line) + len(text) + 3 > 80 - NAME:
            lines.append(line)
            line = ""
        line += ("   " if line else "") + text
    return [f"{'':<{NAME}}{text}" for text in [*lines, line]]


__all__ = ["CELLS", "NAME", "draw", "spans"]
