"""SocketCAN for real: a packaged kernel under QEMU over this machine's files (run-in-vm.sh), python-can and can-utils on the other side."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NO_VM = 125  # run-in-vm.sh: the virtual machine could not be prepared, or went down
TIMEOUT_S = 540


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_can_suite_passes_on_socketcan() -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get: the kernel with SocketCAN comes from Debian's packages")
    inside = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", str(TIMEOUT_S), str(HERE / "inside.py")]
    command = ["bash", str(HERE / "run-in-vm.sh"), "--timeout", str(TIMEOUT_S), "--", *inside]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1])
    if done.returncode == NO_VM:
        pytest.skip(f"no virtual machine with SocketCAN: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
