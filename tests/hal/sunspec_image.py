"""Register images of SunSpec devices, laid by hand from the offsets of the published models: no decoder of hal's is
used."""

from __future__ import annotations

import struct


def u32(value: int) -> list[int]:
    return list(struct.unpack(">HH", struct.pack(">I", value & 0xFFFFFFFF)))


def text(value: str, registers: int) -> list[int]:
    return list(struct.unpack(f">{registers}H", value.encode().ljust(2 * registers, b"\0")))


def sf(value: int) -> int:
    return value & 0xFFFF


def put(image: dict[int, int], addr: int, words: list[int]) -> None:
    for i, w in enumerate(words):
        image[addr + i] = w


def model(image: dict[int, int], at: int, model_id: int, length: int, values: dict[int, list[int]]) -> int:
    """A model at `at`; unset registers 0xFFFF. Returns where the next begins."""
    put(image, at, [model_id, length] + [0xFFFF] * length)
    for offset, words in values.items():
        put(image, at + offset, words)
    return at + 2 + length


def start(image: dict[int, int], base: int, name: str = "Cabinet") -> int:
    put(image, base, [0x5375, 0x6E53])
    values = {
        2: text("Acme", 16),
        18: text(name, 16),
        34: text("", 8),
        42: text("1.0", 8),
        50: text("SN-42", 16),
        66: [1],
    }
    return model(image, base + 2, 1, 66, values)


def end(image: dict[int, int], at: int) -> None:
    put(image, at, [0xFFFF, 0])


def pcs(base: int = 40000, w_sf: int = 1, wset_sf: int = 0) -> tuple[dict[int, int], dict[int, int]]:
    """(registers, {model: address}): models 1, 701, 702, 704, 715."""
    image: dict[int, int] = {}
    where = {}
    where[701] = at = start(image, base)
    values = {
        2: [2], 3: [1], 4: [3], 5: [1], 6: u32(0), 8: u32(1), 10: [sf(-1234)], 11: [1300], 12: [sf(-77)], 13: [990],
        14: [180],
        15: [4000], 16: [2309], 17: u32(49987), 113: [sf(-1)], 114: [sf(-1)], 115: [sf(-3)], 116: [sf(w_sf)],
        117: [sf(-3)],
        118: [sf(1)], 119: [sf(1)],
    }  # fmt: skip
    where[702] = at = model(image, at, 701, 153, values)
    where[704] = at = model(image, at, 702, 50, {2: [25000], 7: [25000], 45: [1], 47: [1], 49: [sf(-1)]})
    values = {
        22: [0],
        23: [1],
        24: u32(0),
        26: u32(0),
        30: [0],
        31: u32(0),
        33: u32(0),
        55: [sf(wset_sf)],
        54: [0],
        57: [0],
    }
    where[715] = at = model(image, at, 704, 65, values)
    at = model(image, at, 715, 7, {2: [0], 3: u32(7), 5: u32(0), 7: [0], 8: [0]})
    end(image, at)
    return image, where


def battery(base: int = 40000) -> tuple[dict[int, int], dict[int, int]]:
    """(registers, {model: address}): models 1, 802, 803."""
    image: dict[int, int] = {}
    where = {}
    where[802] = at = start(image, base, "Rack")
    values = {
        2: [300], 3: [250], 4: [2500], 5: [2500], 11: [5050], 13: [990], 16: [4], 17: [0], 18: [17], 19: [0],
        20: [0], 21: [4], 22: [3],
        26: u32(1 << 2), 28: u32(0), 34: [8000], 35: [9000], 36: [7000], 37: [3400], 40: [3300], 43: [3350],
        44: [sf(-125)],
        45: [300], 46: [310], 47: [sf(-100)], 50: [0], 51: [0],
        52: [0], 53: [3], 54: [2], 56: [sf(-2)], 58: [sf(-1)], 59: [sf(-1)], 60: [sf(-3)], 61: [sf(-1)], 62: [0],
        63: [3],
    }  # fmt: skip
    where[803] = at = model(image, at, 802, 62, values)
    at = model(image, at, 803, 26, {2: [1], 3: [1], 4: [285], 7: [241], 22: [sf(-3)], 23: [sf(-1)], 24: [0], 25: [0], 26: [0]})
    end(image, at)
    return image, where


def meter(base: int = 40000) -> tuple[dict[int, int], dict[int, int]]:
    """(registers, {model: address}): models 1, 203."""
    image: dict[int, int] = {}
    at = start(image, base, "Meter")
    where = {203: at}
    values = {
        6: [0], 8: [2301], 9: [2302], 10: [2303], 15: [sf(-1)], 16: [5001], 17: [sf(-2)], 18: [sf(-3210)], 22: [1],
        28: [55], 32: [1],
    }  # fmt: skip
    at = model(image, at, 203, 105, values)
    end(image, at)
    return image, where
