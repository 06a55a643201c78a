"""The one table of faults: it agrees with the contract, a contradiction ends the import, and the kernel does what it says."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from _core import image as im
from _core.faults import BY_ID, FAULTS, FaultTableError, masks, table_hash
from bench.rig import Rig
from tests.core.test_kernel import FAULT, GRID, STANDBY, TRIP, alarms

ALARMS = {name: bit for name, bit in vars(im).items() if name.startswith("ALM_")}
ROOT = Path(__file__).parents[2]


def changed(fault: str, **fields: object) -> tuple:
    return tuple(replace(r, **fields) if r.id == fault else r for r in FAULTS)


def test_every_alarm_has_its_row_and_the_image_its_words() -> None:
    made = masks(FAULTS, ALARMS)
    assert len(ALARMS) == 13 and made.fault | made.trip == sum(ALARMS.values()) and made.fault & made.trip == 0
    assert {bit: (BY_ID[name].id, BY_ID[name].text) for bit, (name, _) in im.ALARM_TEXT.items()} == im.ALARM_TEXT
    assert {f"ALM_{name.upper()}": bit for bit, (name, _) in im.ALARM_TEXT.items()} == ALARMS


@pytest.mark.parametrize(
    "rows,words",
    [
        (changed("meter_lost", reaction="STOP"), "meter_lost: reaction 'STOP' is unknown"),
        (changed("meter_lost", latching="maybe"), "latching 'maybe' is unknown"),
        (changed("meter_lost", severity="bad"), "severity 'bad' is unknown"),
        (changed("meter_lost", bit=1 << 5), "bit 32 stands 2 times"),
        (changed("meter_lost", bit=1 << 20), "ALM_METER_LOST = 1"),
        (changed("disk", bit=1 << 13), "no such alarm"),
        (changed("disk", reaction="FAULT"), "without a bit the kernel cannot react"),
        (changed("grid_outside", latching="person"), "without a FAULT holds nothing"),
        (changed("internal", reaction="none", latching="no"), "only FAULT takes a state"),
        (changed("meter_lost", recovery=""), "an empty column"),
        (FAULTS[1:], "ALM_METER_LOST = 0x1 of image.pxd has no row"),
        ((*FAULTS, FAULTS[-1]), "id lease stands 2 times"),
    ],
)
def test_a_contradiction_is_named(rows: tuple, words: str) -> None:
    with pytest.raises(FaultTableError, match=re.escape(words)):
        masks(rows, ALARMS)


def test_several_contradictions_are_told_at_once() -> None:
    with pytest.raises(FaultTableError) as e:
        masks(tuple(replace(r, severity="bad") for r in FAULTS), ALARMS)
    assert str(e.value).count("severity 'bad' is unknown") == len(FAULTS)


def with_table(change: str, what: str) -> subprocess.CompletedProcess:
    """Python that changes the table before the kernel is imported."""
    code = f"from dataclasses import replace\nfrom _core import faults\n{change}\n{what}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


CHANGE = "faults.FAULTS = tuple(replace(r, {}) if r.id == {!r} else r for r in faults.FAULTS)"


def test_the_kernel_is_not_imported_with_a_table_that_contradicts_itself() -> None:
    r = with_table(CHANGE.format("reaction='explode'", "bms_lost"), "import _core.kernel")
    assert r.returncode != 0 and "bms_lost: reaction 'explode' is unknown; one of FAULT, TRIP, none" in r.stderr


@pytest.mark.parametrize(
    "fields,modes",
    [
        ("latching='auto'", "0 2"),  # as it stands
        ("latching='person'", "0 0"),
        ("reaction='TRIP', latching='no'", "5 2"),
        ("reaction='none', latching='no'", "2 2"),
    ],
)
def test_kernel_and_twin_take_their_reactions_from_the_table(fields: str, modes: str) -> None:
    what = (
        "from tests.core.pair import Pair, Rig\n"
        "r = Rig(); r.to_grid(); pair = Pair(r.site, r.kernel.get_state()); r.kernel = pair; r.step(1100)\n"
        "r.inp['pcs_life']['pcs_local'] = 1.0; r.step(3); m = r.out['mode']; assert r.out['alarms'] == 1 << 9\n"
        "r.inp['pcs_life']['pcs_local'] = 0.0; r.step(1500); print(m, r.out['mode'])"
    )
    r = with_table(CHANGE.format(fields, "pcs_local"), what)
    assert r.stdout.split() == modes.split(), r.stderr


def test_the_hash_moves_with_what_decides_outcomes_alone() -> None:
    assert table_hash(changed("meter_lost", text="other words")) == table_hash()
    assert table_hash(changed("meter_lost", latching="person")) != table_hash()


# ---------------------------------------------------------------- what is written is what happens


def silent(*names: str) -> Callable[[Rig], None]:
    return lambda r: r.stale.update(names)


def field(group: str, name: str, value: float) -> Callable[[Rig], None]:
    return lambda r: r.inp[group].__setitem__(name, value)


def deaf(r: Rig) -> None:
    r.follow, r.load_w = False, r.load_w + 40e3


def nonsense(r: Rig) -> None:
    r.kernel.set_state(r.kernel.get_state() | {"cmd_w": math.nan, "droop_w": math.nan, "ref_w": math.nan, "load_w": math.nan})
    r.stale.add("meter")


CAUSES: dict[str, Callable[[Rig], None]] = {
    "meter_lost": silent("meter"), "meter_frozen": lambda r: setattr(r, "frozen", True), "pcs_lost": silent("pcs"),
    "pcs_fault": lambda r: setattr(r, "running", False), "pcs_not_following": deaf, "bms_lost": silent("bms"),
    "bms_fault": field("bms", "bms_state", 99.0), "identity": lambda r: r.inp.update(verified=-1),
    "grid_outside": field("meter", "v1_v", 50.0), "pcs_local": field("pcs_life", "pcs_local", 1.0),
    "reversion": field("pcs_ctl", "wset_rvrt_ena", 0.0), "meter_sign": lambda r: setattr(r, "meter_sign", -1.0), "internal": nonsense,
}  # fmt: skip


@pytest.mark.parametrize("fault", [r.id for r in FAULTS if r.bit])
def test_the_kernel_does_what_the_row_says(fault: str) -> None:
    row = BY_ID[fault]
    r = Rig(frozen_s=2.0, jitter_hz=1e-6).to_grid()
    r.step(1100)  # a clean GRID
    CAUSES[fault](r)
    for k in range(1500):
        out = r.step(1, load_w=r.load_w + (8e3 if k % 40 == 0 else -8e3 if k % 40 == 20 else 0.0) if fault == "meter_sign" else None)
        if out["mode"] != GRID:
            break
    assert alarms(out) == {fault}
    assert out["mode"] == {"FAULT": FAULT, "TRIP": TRIP}[row.reaction] and out["p_cmd_w"] == 0.0
    r.stale.clear()
    r.frozen, r.follow, r.meter_sign = False, True, 1.0
    r.inp["meter"]["v1_v"], r.inp["bms"]["bms_state"], r.inp["pcs_life"]["pcs_local"] = 230.0, 3.0, 0.0
    r.inp["pcs_ctl"]["wset_rvrt_ena"], r.inp["verified"] = 1.0, 1
    modes = [r.step()["mode"] for _ in range(2000)]
    assert (modes[-1] == GRID) == (row.latching != "person")
    if row.latching == "no":
        assert modes[0] in (STANDBY, TRIP)
    if row.latching == "auto":
        assert modes[:495] == [FAULT] * 495, "the cause has to be gone for 5 s"
    if row.latching == "person":
        r.inp["reset"] += 1
        assert r.step()["mode"] == STANDBY
