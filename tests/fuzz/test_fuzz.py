"""Every decoder under a coverage-guided fuzzer, where it is compiled on the checked build: 20 s each in `make test`, 10 minutes in
`make soak`.

A crash, a hang, a value out of its range in the image, a sanitizer's report: each ends the run, and the input that did it stands in the
message as a line for the target's corpus. `make soak` also breaks the decoders, one at a time, and the fuzzer has to notice.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fuzz import checked, packed
from tests.fuzz.run import Outcome, run
from tests.fuzz.targets import TARGETS, Target

SHORT_S, LONG_S, MUTANT_S = 20, 600, 60
pytest.importorskip("atheris", reason="atheris is not installed (it has no wheel for this machine): pip install atheris")


def fuzzed(target: Target, seconds: int, tree: Path | None = None) -> Outcome:
    try:
        return run(target, seconds, tree)
    except checked.Unavailable as e:
        pytest.skip(str(e))


def sound(target: Target, seconds: int) -> None:
    out = fuzzed(target, seconds)
    assert out.found is None, f"below `{packed.FOUND}` of {packed.path(target.name)}:\n{out.found!r}\n{out.text[-6000:]}"
    assert out.runs >= target.runs, f"{target.name}: {out.runs} inputs in {seconds} s, at least {target.runs}\n{out.text[-3000:]}"
    assert out.cov >= max(target.cov, out.cov_before), f"{target.name}: {out.cov} edges, at least {target.cov}\n{out.text[-3000:]}"
    assert out.text.rstrip().endswith("ended with 0"), out.text[-6000:]


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one builds
@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_twenty_seconds_of_hostile_bytes(target: Target) -> None:
    sound(target, SHORT_S)


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_ten_minutes_of_hostile_bytes(target: Target) -> None:
    sound(target, LONG_S)


# name: (target that must notice, file, what stands there, what is put instead)
MUTANTS = {
    "a register out of its range is believed": (
        "rtu", "hal/codec.pyx", "if not (isfinite(x) and x >= row.lo and x <= row.hi):", "if False:",
    ),
    "a payload of nine bytes": ("can", "hal/can.pyx", "    if f.len > (64 if f.fd else 8):\n", "    if f.len > 255:\n"),
    "a signal behind the end of its frame": (
        "codec", "hal/can.pyx",
        "    if can_last_byte(row.start, row.length, row.big) >= n:\n        return S_SHORT\n    raw", "    raw",
    ),
    "a line without end": ("slcan", "hal/can.pyx", "        if s.n == SLCAN_LINE:\n", "        if s.n == 2 * SLCAN_LINE:\n"),
    "a command to a stranger": (
        "rtu", "hal/scan.pyx",
        "    return b.devices[d.index].alive and b.devices[d.index].verified == 1\n",
        "    return b.devices[d.index].alive\n",
    ),
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("name", MUTANTS)
def test_a_decoder_that_was_broken_is_found(name: str, tmp_path: Path) -> None:
    target, file, was, instead = MUTANTS[name]
    try:
        tree = shutil.copytree(checked.tree(), tmp_path / "tree")
    except checked.Unavailable as e:
        pytest.skip(str(e))
    text = (tree / file).read_text(encoding="utf-8")
    assert text.count(was) == 1, f"{file} has this {text.count(was)} times: {was!r}"
    (tree / file).write_text(text.replace(was, instead), encoding="utf-8")
    try:
        checked.build(tree)
    except subprocess.CalledProcessError as e:
        raise AssertionError(e.stderr[-3000:]) from None
    out = fuzzed(TARGETS[target], MUTANT_S, tree)
    assert out.found is not None, f"{name}: not noticed in {out.runs} inputs\n{out.text[-2000:]}"
