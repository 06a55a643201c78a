"""SocketCAN for real: a packaged kernel under QEMU over this machine's files (run-in-vm.sh), python-can and can-utils on the other side."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NOT_HERE, NO_VM = 77, 125  # run-in-vm.sh: its packages cannot be had here; the virtual machine failed
TIMEOUT_S = 540


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(HERE / "run-in-vm.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], env=env)


def judge(done: subprocess.CompletedProcess[str]) -> None:
    """Where the packages are not to be had there is nothing to try; whatever else keeps the tests from running is a failure."""
    if done.returncode == NOT_HERE:
        pytest.skip(f"no virtual machine with SocketCAN: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_can_suite_passes_on_socketcan() -> None:
    inside = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", str(TIMEOUT_S), str(HERE / "inside.py")]
    judge(run("--timeout", str(TIMEOUT_S), "--", *inside))


def test_only_packages_that_cannot_be_had_are_a_reason_to_skip(tmp_path: Path) -> None:
    for name in ("apt-get", "apt-cache"):  # of a machine without a mirror
        (tmp_path / name).write_text("#!/bin/sh\nexit 100\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    offline = run("--cache", str(tmp_path / "cache"), "--prepare", env=env)
    assert offline.returncode == NOT_HERE, offline.stderr
    with pytest.raises(pytest.skip.Exception):
        judge(offline)
    broken = run("--kernel", "none")
    assert broken.returncode == NO_VM, broken.stderr
    with pytest.raises(AssertionError, match="--kernel is stock"):
        judge(broken)
