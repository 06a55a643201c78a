"""Register images of the emulated devices, laid out from data/sunspec_points.csv.

An image is (registers, writable) as uint16 and uint8 arrays that start at the device's base address. Points without a
value hold SunSpec's "not implemented" sentinel of their type and are read-only. What moves while the plant runs is
filled by devices.pyx, at offsets checked here.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SUNSPEC_BASE = 40000
PCS_OFFSETS = {1: 2, 701: 70, 702: 225, 704: 277, 715: 344}  # of each model's ID; devices.pyx and pcs.pxd count on them
BMS_OFFSETS = {1: 2, 802: 70, 803: 134}
PCS_REGS, BMS_REGS, METER_REGS = 355, 196, 12
DATA = Path(__file__).parent / "data"

# SunSpec Device Information Model Specification V1.1, section 4.4: value of a point that is not implemented
_SENTINEL = {
    "int16": (0x8000,),
    "uint16": (0xFFFF,),
    "enum16": (0xFFFF,),
    "bitfield16": (0xFFFF,),
    "sunssf": (0x8000,),
    "pad": (0x8000,),
    "int32": (0x8000, 0),
    "uint32": (0xFFFF, 0xFFFF),
    "bitfield32": (0xFFFF, 0xFFFF),
    "uint64": (0xFFFF,) * 4,
}


def _words(text: str) -> list[str]:
    return text.split()


Image = tuple[NDArray[np.uint16], NDArray[np.uint8]]


@dataclass(frozen=True)
class Point:
    """One row of the points table; offset and size in registers."""

    model: int
    offset: int
    name: str
    type: str
    size: int
    writable: bool


@cache
def points() -> dict[int, list[Point]]:
    """All points by model. Raises ValueError where rows of a model overlap or leave a hole."""
    table: dict[int, list[Point]] = {}
    with open(DATA / "sunspec_points.csv") as f:
        for row in csv.DictReader(line for line in f if not line.startswith("#")):
            table.setdefault(int(row["model"]), []).append(
                Point(
                    int(row["model"]),
                    int(row["offset"]),
                    row["name"],
                    row["type"],
                    int(row["size"]),
                    row["access"] == "RW",
                )
            )
    for model, rows in table.items():
        end = 0
        for p in rows:
            if p.offset != end:
                raise ValueError(f"sunspec_points.csv: model {model}: {p.name} at {p.offset}, expected {end}")
            end += p.size
    return table


def _encode(p: Point, value: int | str | None) -> list[int]:
    if p.type == "string":
        raw = (value if isinstance(value, str) else "").encode("ascii")[: 2 * p.size].ljust(2 * p.size, b"\0")
        return [raw[i] << 8 | raw[i + 1] for i in range(0, 2 * p.size, 2)]
    if value is None:
        return list(_SENTINEL[p.type])
    v = int(value) & (1 << 16 * p.size) - 1
    return [v >> 16 * (p.size - 1 - i) & 0xFFFF for i in range(p.size)]


def _model(model: int, given: dict[str, int | str], writable: frozenset[str]) -> tuple[list[int], list[int]]:
    """Registers and write mask of one model; `given` holds raw register values by point name (live ones as 0)."""
    regs: list[int] = []
    mask: list[int] = []
    rows = points()[model]
    unknown = (set(given) | writable) - {p.name for p in rows}
    if unknown:
        raise ValueError(f"model {model} has no point {', '.join(sorted(unknown))}")
    for p in rows:
        value: int | str | None = given.get(p.name)
        if p.name == "ID":
            value = model
        elif p.name == "L":
            value = sum(q.size for q in rows) - 2
        regs += _encode(p, value)
        mask += [int(p.name in writable and p.writable)] * p.size
    return regs, mask


def _image(parts: list[tuple[int, dict[str, int | str], set[str]]], offsets: dict[int, int], total: int) -> Image:
    regs, mask = [0x5375, 0x6E53], [0, 0]  # "SunS"
    for model, given, writable in parts:
        if len(regs) != offsets[model]:
            raise ValueError(f"model {model} stands at {len(regs)}, the compiled code expects {offsets[model]}")
        r, m = _model(model, given, frozenset(writable))
        regs += r
        mask += m
    regs += [0xFFFF, 0]
    mask += [0, 0]
    if len(regs) != total:
        raise ValueError(f"image has {len(regs)} registers, the compiled code expects {total}")
    return np.array(regs, np.uint16), np.array(mask, np.uint8)


def _common(model_name: str, serial: str, unit: int) -> dict[str, int | str]:
    return {"Mn": "Ballast bench", "Md": model_name, "Vr": "1.0", "SN": serial, "DA": unit}


def pcs_image(unit: int, s_rated_va: float, v_ln_v: float = 230.0) -> Image:
    """Models 1, 701, 702, 704, 715. 702 ratings in 10 W / 10 VA; setpoints in 1 W (WSet_SF 0), WSetPct in 0.01 %."""
    live_701 = _words("St InvSt ConnSt Alrm W VA Var PF A LLV LNV Hz TotWhInj TotWhAbs TmpCab")
    live_701 += [f"{q}L{k}" for k in (1, 2, 3) for q in ("W", "VA", "Var", "PF", "A", "V")] + [
        "VL1L2",
        "VL2L3",
        "VL3L1",
    ]
    m701: dict[str, int | str] = dict.fromkeys(live_701, 0)
    m701 |= {
        "ACType": 2,
        "DERMode": 1,
        "A_SF": -1,
        "V_SF": -1,
        "Hz_SF": -3,
        "W_SF": 1,
        "PF_SF": -2,
        "VA_SF": 1,
        "Var_SF": 1,
    }
    m701 |= {"TotWh_SF": 0, "Tmp_SF": 0}
    rating = round(s_rated_va / 10)
    m702: dict[str, int | str] = dict.fromkeys(
        _words(
            "WMaxRtg VAMaxRtg VarMaxInjRtg VarMaxAbsRtg WChaRteMaxRtg WDisChaRteMaxRtg VAChaRteMaxRtg "
            "VADisChaRteMaxRtg WMax VAMax VarMaxInj VarMaxAbs WChaRteMax WDisChaRteMax VAChaRteMax VADisChaRteMax"
        ),
        rating,
    )
    m702 |= {
        "VNomRtg": round(v_ln_v * 3**0.5 * 10),
        "AMaxRtg": round(s_rated_va / (3 * max(v_ln_v, 1)) * 10),
        "CtrlModes": 0b110,
    }
    m702 |= {"W_SF": 1, "PF_SF": -2, "VA_SF": 1, "Var_SF": 1, "V_SF": -1, "A_SF": -1}
    w704 = {"WSetEna", "WSetMod", "WSet", "WSetRvrt", "WSetPct", "WSetPctRvrt", "WSetEnaRvrt", "WSetRvrtTms"}
    w704 |= {"VarSetEna", "VarSetMod", "VarSetPri", "VarSet"}
    m704: dict[str, int | str] = dict.fromkeys(w704 | {"WSetRvrtRem"}, 0)
    m704 |= {"WSetMod": 1, "VarSetMod": 4, "WSet_SF": 0, "WSetPct_SF": -2, "VarSet_SF": 0}
    m715: dict[str, int | str] = {"LocRemCtl": 0, "DERHb": 0, "ControllerHb": 0, "AlarmReset": 0, "OpCtl": 2}
    return _image(
        [
            (1, _common("virtual PCS", "PCS-0001", unit), set()),
            (701, m701, set()),
            (702, m702, set()),
            (704, m704, w704),
            (715, m715, {"ControllerHb", "AlarmReset", "OpCtl"}),
        ],
        PCS_OFFSETS,
        PCS_REGS,
    )


def bms_image(unit: int, energy_wh: float, capacity_ah: float) -> Image:
    """Models 1, 802, 803 with one string of 250 cells."""
    m802: dict[str, int | str] = dict.fromkeys(
        _words(
            "WChaRteMax WDisChaRteMax SoC ChaSt LocRemCtl Hb CtrlHb AlmRst State Evt1 Evt2 EvtVnd1 EvtVnd2 V "
            "CellVMax CellVMin CellVAvg A AChaMax ADisChaMax W"
        ),
        0,
    )
    m802 |= {
        "AHRtg": round(capacity_ah),
        "WHRtg": round(energy_wh / 10),
        "SoCMax": 10000,
        "SoCMin": 0,
        "Typ": 4,
        "SetOp": 1,
        "SetInvState": 3,
    }
    m802 |= {
        "SoH": 10000,
        "VMax": 9000,
        "VMin": 5000,
        "AHRtg_SF": 0,
        "WHRtg_SF": 1,
        "WChaDisChaMax_SF": 1,
        "SoC_SF": -2,
        "SoH_SF": -2,
    }
    m802 |= {"V_SF": -1, "CellV_SF": -3, "A_SF": -1, "AMax_SF": -1, "W_SF": 1}
    m803: dict[str, int | str] = dict.fromkeys(
        _words(
            "NStrCon ModTmpMax ModTmpMin ModTmpAvg StrVMax StrVMin StrVAvg StrAMax StrAMin StrAAvg string/StrSt "
            "string/StrSoC string/StrA string/StrCellVMax string/StrCellVMin string/StrCellVAvg "
            "string/StrModTmpMax string/StrModTmpMin string/StrModTmpAvg string/StrEvt1"
        ),
        0,
    )
    m803 |= {
        "NStr": 1,
        "CellV_SF": -3,
        "ModTmp_SF": -1,
        "A_SF": -1,
        "SoH_SF": -2,
        "SoC_SF": -2,
        "V_SF": -1,
        "string/StrNMod": 25,
    }
    return _image(
        [
            (1, _common("virtual LFP rack", "BMS-0001", unit), set()),
            (802, m802, {"CtrlHb", "AlmRst", "SetOp", "SetInvState"}),
            (803, m803, set()),
        ],
        BMS_OFFSETS,
        BMS_REGS,
    )
