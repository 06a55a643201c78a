"""The checked variant under the core tests.

BALLAST_CHECKED=1: bounds and overflow checks, assertions, address and undefined-behaviour sanitizers. Builds _core into a copy of the
tree and runs the kernel, law, image, invariant and edge tests on it; about a minute and a half.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ("test_kernel.py", "test_kernel_edges.py", "test_kernel_order.py", "test_laws.py", "test_image.py", "test_invariants.py")


@pytest.mark.slow  # a build of its own, a minute of CPU
@pytest.mark.timeout(600)
def test_core_tests_hold_under_sanitizers(tmp_path: Path) -> None:
    asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(asan):
        pytest.skip("gcc has no libasan: apt-get install libasan8 (Debian: part of gcc-12)")
    skip = shutil.ignore_patterns(".venv", "build", "out", ".git", "*.so", "*.egg-info", "__pycache__", ".hypothesis")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=skip)
    env = os.environ | {"BALLAST_CHECKED": "1", "BALLAST_PACKAGES": "_core", "PYTHONPATH": str(tree)}
    built = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    # Python itself leaks by design; its allocator is turned off so that the sanitizer sees every block
    env |= {"LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1", "PYTHONMALLOC": "malloc"}
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-m", "not realtime and not soak", "--timeout", "500"]
    run = [sys.executable, "-m", "pytest", *options, *(f"tests/core/{t}" for t in TESTS)]
    r = subprocess.run(run, cwd=tree, env=env, capture_output=True, text=True, timeout=550)
    assert r.returncode == 0, (r.stdout + r.stderr)[-4000:]
    assert "passed" in r.stdout
