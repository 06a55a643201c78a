"""The checked variant under the core tests and those of hal that bring foreign bytes in.

BALLAST_CHECKED=1: bounds and overflow checks, assertions, address and undefined-behaviour sanitizers. Builds _core and hal into a copy of
the tree and runs on it all of tests/core but the twin (most of a minute in plain Python, on values that the invariants bring as well) and
this file, and the tests of hal's decoders and scans. Left out are what runs in real time, and of hal plans, profiles and ports, which are
Python. Some two minutes of CPU, a third of it the build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAL = ("codec", "can", "canscan", "modbus", "mbap", "scan")
LEFT_OUT = ("test_checked.py", "test_twin.py")
TESTS = [
    *(f"tests/core/{p.name}" for p in sorted(Path(__file__).parent.glob("test_*.py")) if p.name not in LEFT_OUT),
    *(f"tests/hal/test_{name}.py" for name in HAL),
]


@pytest.mark.slow  # a build of its own, minutes of CPU
@pytest.mark.timeout(900)
def test_tests_of_core_and_decoders_hold_under_sanitizers(tmp_path: Path) -> None:
    asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(asan):
        pytest.skip("gcc has no libasan: apt-get install libasan8 (Debian: part of gcc-12)")
    skip = shutil.ignore_patterns(".venv", "build", "out", ".git", "*.so", "*.egg-info", "__pycache__", ".hypothesis")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=skip)
    env = os.environ | {"BALLAST_CHECKED": "1", "BALLAST_PACKAGES": "_core,hal", "PYTHONPATH": str(tree)}
    built = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    # Python itself leaks by design; its allocator is turned off so that the sanitizer sees every block
    env |= {"LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1", "PYTHONMALLOC": "malloc"}
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-m", "not realtime and not soak", "--timeout", "500"]
    run = [sys.executable, "-m", "pytest", *options, *TESTS]
    r = subprocess.run(run, cwd=tree, env=env, capture_output=True, text=True, timeout=800)
    assert r.returncode == 0, (r.stdout + r.stderr)[-4000:]
    assert "passed" in r.stdout
