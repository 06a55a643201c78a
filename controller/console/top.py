"""`top` on a line of any speed: the picture of `ballast top` in cells, twice a second, never more bytes than the line carries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from rich.color import Color, ColorSystem, ColorType
from rich.console import Console
from rich.style import Style

from controller import top as picture
from controller.console.context import Context, Refused
from controller.console.screen import Cell, Screen
from controller.topdata import Source

REFRESH_S = 0.5
SHARE = 0.8  # of what the line carries: keys and their echo want some
BITS_A_BYTE = 10  # 8N1
SWEEP_BELOW_BAUD = 57600  # a picture that scrolls changes every cell; below this one it is overwritten in place


def run(ctx: Context, words: list[str]) -> Iterable[str] | None:
    """The command: until q or Ctrl-C. On a terminal without a cursor: one status after the other is all that it could be."""
    instance, image, site = ctx.running()
    line = ctx.line
    if not line.vt:
        raise Refused("this terminal knows no cursor (no answer to ESC[6n): use `status`")
    source = Source(image, site, instance)
    budget = None if line.wire.baud is None else int(SHARE * REFRESH_S * line.wire.baud / BITS_A_BYTE)
    sweep = line.wire.baud is not None and line.wire.baud < SWEEP_BELOW_BAUD
    screen = Screen(line.width, line.height, utf8=line.utf8, colour=line.colour)
    line.write_bytes(screen.clear())
    try:
        while True:
            ctx.refresh()
            if ctx.image is None or ctx.site is None:
                return [f"the site ended: {ctx.why_not}"]
            if ctx.image is not source.image:
                source = Source(ctx.image, ctx.site, ctx.instance)
            source.instance, source.site = ctx.instance, ctx.site  # settings change while it runs
            began_ns = ctx.clock.monotonic_ns()
            line.write_bytes(screen.frame(list(cells(source, line.width, line.height, began_ns, sweep=sweep)), budget))
            due_ns = began_ns + int(REFRESH_S * 1e9)
            while (left_s := (due_ns - ctx.clock.monotonic_ns()) / 1e9) > 0:
                key = line.key(left_s)
                if key and key in "qQ\x03\x04":
                    return None
                if key == "\x0c":  # Ctrl-L: what noise has put there is drawn over
                    line.write_bytes(screen.clear())
    finally:
        line.write_bytes(screen.close())


def cells(source: Source, width: int, height: int, now_ns: int, *, sweep: bool) -> Iterator[list[Cell]]:
    """The picture as rows of cells."""
    console = Console(width=width - 1, height=height, force_terminal=True, color_system="standard", legacy_windows=False)
    drawn = picture.render(source.snapshot(now_ns), width - 1, height, sweep=sweep)
    for row in console.render_lines(drawn, console.options.update(width=width - 1), pad=False)[:height]:
        yield [(char, _sgr(segment.style)) for segment in row for char in segment.text]


@cache
def _sgr(style: Style | None) -> str:
    """SGR parameters of a rich style: bold, reverse and the eight colours."""
    if style is None:
        return ""
    parts = ["1"] if style.bold else []
    if style.reverse:
        parts.append("7")
    for colour, base in ((style.color, 30), (style.bgcolor, 40)):
        number = _eight(colour)
        if number is not None:
            parts.append(str(base + number))
    return ";".join(parts)


def _eight(colour: Color | None) -> int | None:
    if colour is None or colour.type == ColorType.DEFAULT:
        return None
    number = colour.downgrade(ColorSystem.STANDARD).number
    return None if number is None else number % 8
