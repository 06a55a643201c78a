"""Does anybody notice? The kernel is broken in dozens of ways, one at a time, and the fast core tests have to see it.

Each mutant is a replacement in a copy of kernel.pyx or laws.pxd, built without optimization in a directory of its own (kernel and laws
only; the other modules are copied as built) and given to the tests of laws, kernel, edges, vectors and invariants. The twin is left out:
it differs from every mutant by construction, and would hide what the tests that say what is right do not say. About 2 minutes on 2 cores.

By hand: python -m tests.soak.test_mutants [NAME...] prints a line a mutant, and the first test that noticed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ("test_laws.py", "test_vectors.py", "test_kernel.py", "test_kernel_edges.py", "test_kernel_order.py", "test_invariants.py")
K, L = "_core/kernel.pyx", "_core/laws.pxd"

# name: (file, what stands there, what is put instead), and so on for more than one place
MUTANTS: dict[str, tuple[str, ...]] = {
    "battery counts the other way in the load": (K, "load = i.meter.grid_p_w + st.model_p_w", "load = i.meter.grid_p_w - st.model_p_w"),
    "shave the wrong way round": (L, "return net_w - ref_w", "return ref_w - net_w"),
    "droop sign": (L, "return -deadband(f_hz", "return deadband(f_hz"),
    "volt-var sign": (L, "clamp(-deadband(v_pu", "clamp(deadband(v_pu"),
    "SoC term sign": (K, "target -= clamp((i.bms.soc", "target += clamp((i.bms.soc"),
    "BMS discharge current dropped": (K, "s.batt_eta * i.bms_lim.batt_v * i.bms_lim.batt_i_discharge_max_a", "INF"),
    "BMS charge current dropped": (K, "i.bms_lim.batt_v * i.bms_lim.batt_i_charge_max_a", "INF"),
    "efficiency dropped": (K, "s.batt_eta * i.bms_lim.batt_v *", "i.bms_lim.batt_v *"),
    "SoC floor dropped": (K, "taper(i.bms.soc - lim.soc_min, SOC_TAPER)", "1.0"),
    "SoC ceiling from the wrong side": (K, "taper(lim.soc_max - i.bms.soc, SOC_TAPER)", "taper(i.bms.soc - lim.soc_max, SOC_TAPER)"),
    "cold battery ignored": (K, "if k == k and not k < t:", "if False:"),
    "converter rating dropped": (K, "less(&w.dis_w, &w.dis_why, s.pcs_p_max_w, LIM_PCS_S)", "pass"),
    "limits of the supervisor dropped": (K, "less(&w.dis_w, &w.dis_why, lim.p_discharge_max_w, LIM_SITE_P)", "pass"),
    "NaN bound allows": (K, "if not bound > 0.0:", "if bound < 0.0:"),
    "contract outranks the BMS": (
        K,
        "    p = bounded(p, -w.cha_w, w.dis_w, w.cha_why, w.dis_why, w)\n    return p",
        "    p = bounded(p, -w.cha_w, w.dis_w, w.cha_why, w.dis_why, w)\n"
        "    return clamp(p, w.net_w - lim.import_limit_w, w.net_w + lim.export_limit_w)",
    ),
    "contract outranks droop": (
        K,
        "        p += droop_w\n",
        "        p = clamp(p + droop_w, w.net_w - lim.import_limit_w, w.net_w + lim.export_limit_w)\n",
    ),
    "a reduction is slewed": (L, "x = target if (x > 0.0) == (target > 0.0) else 0.0", "pass"),
    "stale meter believed": (K, "w.meter_ok = age <= s.meter_hold_s and", "w.meter_ok ="),
    "quality not looked at": (K, "if g.t_ns == 0 or g.quality != Q_GOOD:", "if g.t_ns == 0:"),
    "age from the tick before": (K, "age = <double>minus(i.step_t_ns, g.t_ns)", "age = <double>minus(i.t_ns - 10000000, g.t_ns)"),
    "leases never end": (K, "i.slot[k].lease_until_ns > i.t_ns and", ""),
    "planner outranks operator": (K, "for k in range(SLOTS):", "for k in range(SLOTS - 1, -1, -1):"),
    "ramp per call": (K, "lim.ramp_up_w_per_s, lim.ramp_down_w_per_s, w.dt_s)", "lim.ramp_up_w_per_s, lim.ramp_down_w_per_s, 0.01)"),
    "ramp up and down swapped": (
        K,
        "bound, lim.ramp_up_w_per_s, lim.ramp_down_w_per_s",
        "bound, lim.ramp_down_w_per_s, lim.ramp_up_w_per_s",
    ),
    "reference winds up": (
        K,
        "st.ref_w = bounded(st.ref_w, w.net_w - w.dis_w, w.net_w + w.cha_w,",
        "bounded(st.ref_w, w.net_w - w.dis_w, w.net_w + w.cha_w,",
    ),
    "charge and discharge swapped for the reference": (K, "w.net_w - w.dis_w, w.net_w + w.cha_w", "w.net_w - w.cha_w, w.net_w + w.dis_w"),
    "ramp not held is not counted": (K, "1e-6:\n        st.not_held_s += w.dt_s", "1e-6:\n        pass"),
    "export limit for the target dropped": (K, "clamp(target, -lim.export_limit_w, allowed)", "clamp(target, -INF, allowed)"),
    "import limit is not instantaneous": (
        K,
        "p = bounded(p, w.net_w - lim.import_limit_w, w.net_w + lim.export_limit_w, LIM",
        "p = bounded(p, -INF, w.net_w + lim.export_limit_w, LIM",
    ),
    "breaker dropped": (K, "p = bounded(p, w.net_w - s.feeder_w, w.net_w + s.feeder_w, LIM", "p = bounded(p, -INF, INF, LIM"),
    "strangers are started": (K, "w.bms_ok and i.verified == 1 and causes(", "w.bms_ok and i.verified >= 0 and causes("),
    # Both guards, because each alone covers the other: the start sequence stands at its first step while anybody is a stranger,
    # and at that step the gate is shut anyway. One of them broken changes no output at all.
    "gate open to strangers": (
        K,
        "w.bms_ok and i.verified == 1 and causes(", "w.bms_ok and i.verified >= 0 and causes(",
        "o.gate = st.mode != MODE_STANDBY or (i.verified == 1 and (", "o.gate = st.mode != MODE_STANDBY or (i.verified >= 0 and (",
    ),
    "every converter is adopted": (K, "if st.mode == MODE_STANDBY and st.adopt and", "if st.mode == MODE_STANDBY and"),
    "not finite leaves": (K, "    if not finite(p):\n", "    if False:\n"),
    "a PCS that does not listen is followed": (K, "    if i.pcs_deaf and st.mode == MODE_GRID:", "    if False:"),
    "trips at once": (K, "since_s(i, st.bad_since_ns) >= s.trip_s", "True"),
    "one heartbeat is enough": (K, "since_s(i, st.hb_first_ns) >= HEARTBEAT_S", "True"),
    "resets by itself for ever": (K, "if st.reset_t_ns[oldest] and", "if False and"),
    "resets without a clean GRID": (K, "if now or not st.was_clean:", "if now:"),
    "a latched fault is forgotten by a restart": (K, "    if i.latched: ", "    if False: "),
    "parked for ever": (K, "if st.parked and not i.park:", "if False:"),
    "parking makes an island black": (
        K, "(i.park and (st.mode == MODE_GRID or (", "(i.park and (st.mode != MODE_STOP or (",
    ),
    "a parked site follows for a tick": (K, "            if i.park:                          # adopted", "            if False:  #"),
    "the reference moves while nobody listens": (K, "elif st.mode != MODE_STOP and i.pcs_deaf:", "elif False:"),
    "what a deaf converter moved is not counted": (K, "what the load does\n        st.not_held_s += w.dt_s", "what the load does"),
    "a refusing converter is not asked to stop": (K, "if (st.mode == MODE_FAULT or st.mode == MODE_TRIP) and w.pcs_ok", "if False"),
    "a stop ends with the park": (K, "        st.parked = 0     ", "        pass     "),
    "an operator's limit is not shown": (K, "if lim.flags & LIMITS_OPERATOR:", "if False:"),
    "deaf converter not noticed": (K, "react(st, i, w, ALM_PCS_NOT_FOLLOWING)", "pass"),
    "dead time forgotten": (K, "minus(i.command_t_ns, -to_ns(s.pcs_dead_s))", "i.command_t_ns"),
    "load at the instant of the step": (K, "&st.model_at, i.meter.g.t_ns)", "&st.model_at, i.step_t_ns)"),
    "lost devices stop the commands": (
        K, "o.gate = st.mode != MODE_STANDBY or (", "o.gate = i.verified == 1 and (st.mode != MODE_STANDBY) or (",
    ),
    "late meter at full bandwidth": (K, "+ <double>minus(st.model_t_ns, i.meter.g.t_ns) * 1e-9", ""),
    "bias of the readback left out": (K, "st.model_p_w + st.rb_err_w + others", "st.model_p_w + others"),
    "adopted at 0": (K, "p = clamp(kept, -w.cha_w, w.dis_w)", "p = 0.0"),
    "Q does not leave room for P": (L, "cdef double d = s_va * s_va - p_w * p_w", "cdef double d = s_va * s_va"),
    "window used in full counts as empty": (K, "st.billing_wh = s.import_limit_w * elapsed / 3600.0", "st.billing_wh = 0.0"),
    "second SIGTERM ignored": (K, "if st.stop_s > 0.0 and i.stop < 2 else 0.0", "if st.stop_s > 0.0 else 0.0"),
    "reversed meter not noticed": (K, "react(st, i, w, ALM_METER_SIGN)", "pass"),
    "ringing not noticed": (K, "st.ring_s = clamp(3.0 * st.ring_s, 0.01, 0.1)", "pass"),
    "lost reversion timer not noticed": (K, "react(st, i, w, ALM_REVERSION)", "pass"),
}  # fmt: skip


def mutated(file: str, *changes: str) -> str:
    """The text of the broken file; raises where what is to be replaced is not there exactly once."""
    text = (ROOT / file).read_text()
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert text.count(old) == 1, f"{file} holds {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    return text


def build(where: Path, file: str, *changes: str) -> None:
    """The mutant in `where`; raises where it cannot be made, or does not build."""
    for folder in ("_core", "bench", "tests"):
        (where / folder).mkdir()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for p in (ROOT / "_core").iterdir():
        if p.suffix in (".pyx", ".pxd", ".py") or p.name == f"image{suffix}" or (file == K and p.name == f"_laws_face{suffix}"):
            shutil.copy(p, where / "_core")
    for p in ("bench/__init__.py", "bench/rig.py", "tests/__init__.py"):
        shutil.copy(ROOT / p, where / p)
    shutil.copytree(ROOT / "tests" / "core", where / "tests" / "core", ignore=shutil.ignore_patterns("__pycache__", "test_engine*"))
    (where / file).write_text(mutated(file, *changes))
    include = sysconfig.get_path("include")
    for module in ("kernel",) if file == K else ("kernel", "_laws_face"):
        c = where / f"{module}.c"
        options = ["-3", "-X", "cdivision=True", "-X", "wraparound=False", "-X", "boundscheck=False", "-X", "binding=True"]
        run([sys.executable, "-m", "cython", *options, "-o", str(c), f"_core/{module}.pyx"], where)
        flags = ["-O0", "-w", "-fPIC", "-shared", "-ffp-contract=off", f"-I{include}"]
        run(["gcc", *flags, "-o", str(where / "_core" / f"{module}{suffix}"), str(c)], where)


def run(command: list[str], where: Path) -> None:
    r = subprocess.run(command, cwd=where, capture_output=True, text=True)
    if r.returncode:
        raise AssertionError(f"{' '.join(command[:4])}: {r.stdout[-2000:]}{r.stderr[-2000:]}")


def noticed_by(name: str) -> str:
    """The first test that fails for the mutant; '' where none does."""
    with tempfile.TemporaryDirectory() as d:
        where = Path(d)
        build(where, *MUTANTS[name])
        options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-o", "addopts="]
        command = [sys.executable, "-m", "pytest", *options, *(f"tests/core/{t}" for t in TESTS)]
        env = os.environ | {"PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": "1"}
        r = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=300, env=env)
        found = re.search(r"^FAILED (?:tests/core/)?(\S+)", r.stdout, re.M)
        # a mutant that does not even import says nothing about the tests, and a run without a count of passed tests has survived nothing
        passed = r.returncode == 0 and re.search(r"^\d+ passed", r.stdout, re.M)
        assert passed or found, f"{name}: {r.stdout[-2000:]}{r.stderr[-2000:]}"
        return found[1] if found else ""


def survey(names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        result = {}
        for name, by in zip(names, pool.map(noticed_by, names), strict=True):
            print(f"{name:<50} {by or 'SURVIVED'}", flush=True)
            result[name] = by
    print(f"{sum(map(bool, result.values()))} of {len(result)} noticed", flush=True)
    return result


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_still_breaks_one_place_of_its_source(name: str) -> None:
    file, *changes = MUTANTS[name]
    assert mutated(file, *changes) != (ROOT / file).read_text()


@pytest.mark.soak
def test_the_tests_notice_a_broken_kernel() -> None:
    result = survey(list(MUTANTS))
    survivors = [name for name, by in result.items() if not by]
    assert len(result) >= 30
    assert len(survivors) <= len(result) // 30, survivors


if __name__ == "__main__":
    survey(sys.argv[1:] or list(MUTANTS))
