"""A picture as cells: only what changed is sent, and no more than the line carries.

`Screen.frame` compares the wanted cells with those that the terminal shows and writes the differences, row after row from
where the last frame stopped, until the budget of bytes is used; what is left waits for the next frame. VT100 alone: cursor
addressing, erase, bold, reverse, and the eight colours where the terminal has them.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.console.line import ascii_text

Cell = tuple[str, str]  # character, SGR parameters ("" plain)
BLANK: Cell = (" ", "")
GAP = 4  # unchanged cells that are cheaper sent again than jumped over
FRAME_BYTES = 64  # the least that a frame may send: a line slower than that is not watched


class Screen:
    """What one terminal shows."""

    def __init__(self, width: int, height: int, *, utf8: bool, colour: bool) -> None:
        self.width, self.height, self.utf8, self.colour = width, height, utf8, colour
        self._shown: list[list[Cell]] = []
        self._next = 0
        self.pending = 0  # rows that still differ after the last frame

    def clear(self) -> bytes:
        """Empties the terminal; every cell is sent anew afterwards. The cursor is hidden."""
        self._shown = [[BLANK] * self.width for _ in range(self.height)]
        self._next = 0
        return b"\x1b[0m\x1b[2J\x1b[H\x1b[?25l"

    def close(self) -> bytes:
        """Gives the terminal back: below the picture, with a cursor."""
        return f"\x1b[0m\x1b[{self.height};1H\r\n\x1b[?25h".encode()

    def frame(self, rows: Sequence[Sequence[Cell]], budget: int | None = None) -> bytes:
        """The bytes that bring the terminal nearer to `rows`; at most about `budget` of them (None: all)."""
        wanted = [self._fitted(rows[i] if i < len(rows) else ()) for i in range(self.height)]
        out: list[bytes] = []
        used, start = 0, self._next
        room = None if budget is None else max(FRAME_BYTES, budget)
        for k in range(self.height):
            i = (start + k) % self.height
            if wanted[i] == self._shown[i]:
                continue
            while wanted[i] != self._shown[i]:
                run = self._run(i, wanted[i], None if room is None else room - used)
                if run is None:
                    self._next = i
                    self.pending = sum(a != b for a, b in zip(wanted, self._shown, strict=True))
                    return b"".join(out)
                out.append(run)
                used += len(run)
        self.pending = 0
        self._next = 0
        return b"".join(out)

    def _fitted(self, row: Sequence[Cell]) -> list[Cell]:
        """The row as this terminal can show it: its width, its characters, its colours. The last column stays free: a VT100
        wraps there.
        """
        cells = [(c if self.utf8 else ascii_text(c), style if self.colour else _mono(style)) for c, style in row[: self.width - 1]]
        return cells + [BLANK] * (self.width - len(cells))

    def _run(self, i: int, wanted: list[Cell], room: int | None) -> bytes | None:
        """The first stretch of row i that differs, as much of it as fits; None where not even a cell does."""
        shown = self._shown[i]
        first = next(x for x in range(self.width) if wanted[x] != shown[x])
        last, same = first, 0
        for x in range(first + 1, self.width):
            if wanted[x] != shown[x]:
                last, same = x, 0
            elif (same := same + 1) > GAP:
                break
        text = [f"\x1b[{i + 1};{first + 1}H"]
        size, style, end = len(text[0]) + 4, "", first
        for x in range(first, last + 1):
            char, own = wanted[x]
            part = (f"\x1b[0;{own}m" if own else "\x1b[0m") + char if own != style else char
            more = len(part.encode())
            if room is not None and size + more > room:
                break
            text.append(part)
            size, style, end = size + more, own, x + 1
        if end == first:
            return None
        shown[first:end] = wanted[first:end]
        return ("".join(text) + ("\x1b[0m" if style else "")).encode("utf-8")


def _mono(style: str) -> str:
    """Bold and reverse alone."""
    return ";".join(p for p in style.split(";") if p in ("1", "7"))
