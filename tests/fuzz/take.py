"""A fuzzer's bytes, read as the decisions of a test: what is not there any more is 0, so every input is a whole one."""

from __future__ import annotations

import math
import struct


class Take:
    """Reads its bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def bytes(self, n: int) -> bytes:
        """At most n bytes: as many as there are."""
        out = self.data[self.at : self.at + n]
        self.at += n
        return out

    def int(self, n: int = 1) -> int:
        """An unsigned number of n bytes."""
        return int.from_bytes(self.bytes(n), "little")

    def below(self, n: int) -> int:
        """0..n-1, of one byte (two from 256 on)."""
        return self.int(1 if n <= 256 else 2) % n

    def real(self) -> float:
        """Any double: NaN and infinities too."""
        return float(struct.unpack("<d", self.bytes(8).ljust(8, b"\0"))[0])

    def finite(self, default: float) -> float:
        """A finite double; `default` where the bytes hold none."""
        x = self.real()
        return x if math.isfinite(x) else default
