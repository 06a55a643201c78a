"""The checked variant under the core tests and those of hal that bring foreign bytes in.

BALLAST_CHECKED=1: bounds and overflow checks, assertions, address and undefined-behaviour sanitizers. One build has _core checked and runs
all of tests/core on it but the twin (most of a minute in plain Python, on values that the invariants bring as well) and this file; the
other is the fuzzers', with hal checked, and runs the tests of the decoders and scans. Left out are what runs in real time, and of hal
plans, profiles and ports, which are Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import checked

ROOT = Path(__file__).parents[2]
HAL = ("codec", "can", "canscan", "modbus", "mbap", "scan", "fc23", "turnaround", "wire_faults")
LEFT_OUT = ("test_checked.py", "test_twin.py")
CORE = [f"tests/core/{p.name}" for p in sorted(Path(__file__).parent.glob("test_*.py")) if p.name not in LEFT_OUT]


def passes(tree: Path, env: dict[str, str], tests: list[str]) -> None:
    """The tests, in that tree. Python itself leaks by design; its allocator is turned off so that the sanitizer sees every block."""
    env = env | {"PYTHONMALLOC": "malloc"}
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-m", "not realtime and not soak", "--timeout", "500"]
    r = subprocess.run([sys.executable, "-m", "pytest", *options, *tests], cwd=tree, env=env, capture_output=True, text=True, timeout=800)
    assert r.returncode == 0, (r.stdout + r.stderr)[-4000:]
    assert "passed" in r.stdout


@pytest.mark.slow  # a build of its own, a minute of CPU and more
@pytest.mark.timeout(900)
def test_tests_of_core_hold_under_sanitizers(tmp_path: Path) -> None:
    try:
        asan = checked.sanitizer()
    except checked.Unavailable as e:
        pytest.skip(str(e))
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=checked.LEFT_OUT)
    for module in tree.glob("_core/*.so"):
        module.unlink()
    env = os.environ | {"BALLAST_CHECKED": "1", "BALLAST_PACKAGES": "_core", "PYTHONPATH": str(tree)}
    built = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    passes(tree, env | {"LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1"}, CORE)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first that asks for this tree builds it
def test_tests_of_the_decoders_hold_under_sanitizers() -> None:
    try:
        tree = checked.tree()
    except checked.Unavailable as e:
        pytest.skip(str(e))
    passes(tree, checked.environment(tree), [f"tests/hal/test_{name}.py" for name in HAL])
