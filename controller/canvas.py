"""A braille canvas: two by four dots a character, one colour a character, in plain Python."""

from __future__ import annotations

from collections.abc import Iterator

# Dot bits of a braille cell, U+2800 + bits: rows from the top, left and right column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


class Canvas:
    """`columns` x `rows` characters; dots are addressed with (0, 0) at the top left. Later layers win a cell's
    colour.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = max(1, columns), max(1, rows)
        self.width, self.height = 2 * self.columns, 4 * self.rows
        self._bits = [[0] * self.columns for _ in range(self.rows)]
        self._style = [[""] * self.columns for _ in range(self.rows)]

    def dot(self, x: int, y: int, style: str) -> None:
        """Sets one dot; outside is ignored."""
        if 0 <= x < self.width and 0 <= y < self.height:
            self._bits[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
            self._style[y // 4][x // 2] = style

    def span(self, x: int, y1: int, y2: int, style: str) -> None:
        """A vertical run of dots."""
        for y in range(min(y1, y2), max(y1, y2) + 1):
            self.dot(x, y, style)

    def clear_cell(self, x: int, y: int) -> None:
        """Empties the character of a dot, so that a line on top of an area stays a line."""
        if 0 <= x < self.width and 0 <= y < self.height:
            self._bits[y // 4][x // 2] = 0

    def lines(self) -> Iterator[list[tuple[str, str]]]:
        """Each row as runs of (text, style)."""
        for bits, styles in zip(self._bits, self._style, strict=True):
            runs: list[tuple[str, str]] = []
            for b, style in zip(bits, styles, strict=True):
                char, own = (chr(0x2800 + b), style) if b else (" ", "")
                if runs and runs[-1][1] == own:
                    runs[-1] = (runs[-1][0] + char, own)
                else:
                    runs.append((char, own))
            yield runs
