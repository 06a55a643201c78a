"""`commissioning.json`: what each step found, kept at once, bound to what it was found on.

A step's result stands as long as what it depends on stands: the settings it names, buses, devices, their identities and
every row they were compiled to. A changed site shows which steps are to be repeated; nothing is forgotten, only marked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from controller import disk
from controller.commission.rig import Busy, Rig
from controller.instance import LOCK_S, state_directory, take

NAME = "commissioning.json"
VERSION = 1
PASS, FAIL, SKIPPED = "pass", "fail", "skipped"
MOST_BYTES = 8 << 20
POINTS = 500  # of a series that is kept for a picture


@dataclass
class Result:
    """What one step found.

    numbers   name with its unit last -> value
    facts     sentences that a person reads, in order
    series    name -> {"x": [...], "y": [...]} of at most 500 points, for the pictures
    """

    verdict: str
    reason: str
    numbers: dict[str, float | int | str | None] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)
    series: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)  # what was written into the site, or must be by hand


def identities(rig: Rig) -> list[dict[str, Any]]:
    """Each device as the site names it and as it was read: what a result is bound to."""
    rows = []
    for k, device in enumerate(rig.site.devices):
        info = rig.maps[k].info if k < len(rig.maps) else {}
        read = {key: str(info[key]) for key in ("manufacturer", "model", "serial") if info.get(key)}
        proof = sorted((v.name, v.addr, v.fc, list(v.words)) for v in rig.maps[k].verify) if k < len(rig.maps) else []
        digest = hashlib.sha256(json.dumps(proof).encode()).hexdigest()[:16] if proof else ""
        rows.append({"name": device.name, "role": device.role, "bus": device.bus, "unit": device.unit,
                     "profile": device.profile, **read, "verified_sha256": digest})  # fmt: skip
    return rows


def _map_sha256(rig: Rig, k: int) -> str:
    """Hash of all rows that a device was compiled to: address, type, sign, scale, limits, timing; "" where they are not known."""
    if k >= len(rig.maps):
        return ""
    rows = asdict(replace(rig.maps[k], info={}))  # what is for people stands in `identities`
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()


def binding(rig: Rig, depends: Sequence[str]) -> str:
    """Hash of all that a step depends on: keys or sections ("pcs.", "grid.ramp_up_w_per_s") beside buses, devices, the rows
    that these were compiled to, and whether they are real.
    """
    values = {k: v for k, v in rig.site.values.items() if any(k == d or (d.endswith(".") and k.startswith(d)) for d in depends)}
    buses = [[b.name, b.baud, b.parity, b.stop_bits] for b in rig.site.buses]
    maps = [_map_sha256(rig, k) for k in range(len(rig.site.devices))]
    text = json.dumps([values, buses, identities(rig), maps, rig.instance.virtual], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(x: Any) -> Any:
    """The value as JSON can hold it: what is not finite becomes null."""
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, Mapping):
        return {str(k): plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    return x


def thin(x: Sequence[float], y: Sequence[float], digits: int = 6) -> dict[str, list[float]]:
    """A series of at most 500 points for a picture; NaN left out."""
    pairs = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    step = max(1, math.ceil(len(pairs) / POINTS))
    return {"x": [round(a, digits) for a, _ in pairs[::step]], "y": [round(b, 4) for _, b in pairs[::step]]}


class Results:
    """The file of one site. `note`: what a person should hear about it (it was damaged and put aside)."""

    def __init__(self, path: Path) -> None:
        self.path, self.note = path, ""
        self.steps: dict[str, dict[str, Any]] = {}
        self.head: dict[str, Any] = {}
        self.signed: dict[str, Any] | None = None
        self._load()

    @classmethod
    def of(cls, site_name: str) -> Results:
        """Those beside the site's store."""
        return cls(state_directory(site_name) / NAME)

    def _load(self) -> None:
        try:
            with open(self.path, "rb") as file:
                raw = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return
        try:
            data = json.loads(raw)
            if len(raw) > MOST_BYTES or data["version"] != VERSION:
                raise ValueError("of another version, or too large")
            steps = dict(data["steps"])
            for row in steps.values():
                str(row["verdict"]), str(row["binding"]), float(row["wall_s"]), dict(row["numbers"]), list(row["facts"])
            self.steps, self.head, self.signed = steps, dict(data["head"]), data.get("signed")
        except (ValueError, KeyError, TypeError) as e:
            aside = self.path.with_suffix(".damaged")
            self.path.replace(aside)
            self.note = f"{self.path} cannot be used ({e}); it was put aside as {aside.name}, and the test begins anew"

    def put(self, rig: Rig, step: str, depends: Sequence[str], result: Result, who: str) -> None:
        """Keeps one result at once. Raises OSError where the disk does not take it."""
        self.head = {"site": rig.site.name, "file": rig.site.file, "virtual": rig.instance.virtual,
                     "settings_hash": rig.site.settings_hash(), "devices": identities(rig)}  # fmt: skip
        self.steps[step] = plain(asdict(result)) | {
            "binding": binding(rig, depends), "settings_hash": rig.site.settings_hash(), "who": who, "wall_s": rig.clock.wall_s(),
        }  # fmt: skip
        self.signed = None  # a signature is for what was known when it was given
        self.write()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One test of a site at a time. Raises Busy."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not take(fd, LOCK_S):
                raise Busy("another test of this site is under way; end that one first")
            yield
        finally:
            os.close(fd)

    def sign(self, name: str, remarks: str, wall_s: float) -> None:
        """The signature under what stands now. Raises OSError."""
        self.signed = {"name": name, "remarks": remarks, "wall_s": wall_s, "sha256": self.sha256()}
        self.write()

    def sha256(self) -> str:
        """Hash of head and all results as canonical JSON (sorted keys, no spaces)."""
        text = json.dumps({"head": self.head, "steps": self.steps}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self) -> None:
        """In one step: a power cut leaves the old file or the new one. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = {"version": VERSION, "head": self.head, "steps": self.steps, "signed": self.signed}
        disk.replace(self.path, json.dumps(data, indent=1, sort_keys=True).encode(), 0o644)

    def state(self, rig: Rig, step: str, depends: Sequence[str]) -> str:
        """"pass", "fail", "skipped", "changed" (passed once, on another site) or "open"."""
        row = self.steps.get(step)
        if row is None:
            return "open"
        if row["verdict"] == PASS and row["binding"] != binding(rig, depends):
            return "changed"
        return str(row["verdict"])
