"""A copy of the tree whose compiled decoders are checked (setup.py's BALLAST_CHECKED) and say which edges they have taken."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
COVERAGE = "-fsanitize-coverage=trace-pc,trace-cmp"
LEFT_OUT = shutil.ignore_patterns(".venv", "build", "out", ".git", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "docs")
KEEP = 3  # builds of other states of the sources, for whoever goes back and forth


class Unavailable(Exception):
    """The checked build cannot be made or run here; the text says what is missing."""


def sanitizer() -> str:
    """The path of gcc's address sanitizer. Raises Unavailable."""
    try:
        out = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    except OSError as e:
        raise Unavailable(f"no gcc: {e}") from None
    if not os.path.isabs(out):
        raise Unavailable("gcc has no libasan: apt-get install libasan8 (Debian: part of gcc-12)")
    return os.path.realpath(out)


def environment(tree: Path) -> dict[str, str]:
    """What a Python needs that loads the modules of `tree`."""
    return os.environ | {
        # cover.so before libasan, which has empty functions of the same names; it defines nothing that libasan replaces
        "LD_PRELOAD": f"{tree / 'cover.so'} {sanitizer()}",
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0:quarantine_size_mb=16:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:abort_on_error=1",  # libFuzzer keeps the input at a signal, not at an exit
        "PYTHONPATH": os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def _state() -> str:
    """Names the sources and the compiler: a build of them is made once."""
    h = hashlib.sha256(subprocess.run(["gcc", "--version"], capture_output=True, check=True).stdout + sys.version.encode())
    for path in sorted([*ROOT.glob("_core/*.p[yx][xd]"), *ROOT.glob("hal/*.p[yx][xd]"), ROOT / "setup.py", ROOT / "tests/fuzz/cover.c"]):
        h.update(path.name.encode() + path.read_bytes())
    return h.hexdigest()[:16]


def build(tree: Path, modules: str = "hal") -> None:
    """Compiles the modules of `tree` in place. Raises subprocess.CalledProcessError with what the compiler said."""
    env = os.environ | {"BALLAST_CHECKED": "1", "BALLAST_PACKAGES": modules, "CFLAGS": COVERAGE, "PYTHONPATH": str(tree)}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "-j2"]
    subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=True)


def copy(tree: Path) -> None:
    """The tree without the compiled modules of hal; those of _core as they are (the kernel decodes nothing)."""
    shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
    for module in tree.glob("hal/*.so"):
        module.unlink()
    for module in tree.glob("bench/**/*.so"):
        module.unlink()


def tree() -> Path:
    """The checked build of the sources as they are now, outside the tree; made where there is none yet (a minute). Several may ask at
    once. Raises Unavailable, subprocess.CalledProcessError.
    """
    sanitizer()
    base = Path(tempfile.gettempdir()) / f"ballast-checked-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        raise Unavailable(f"{base} belongs to somebody else")
    made = base / _state()
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "cover.so").exists():
            shutil.rmtree(made, ignore_errors=True)
            copy(made)
            build(made)
            source, out = made / "tests/fuzz/cover.c", made / "cover.so"
            subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", out, source], capture_output=True, text=True, check=True)
            for old in sorted((p for p in base.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)[:-KEEP]:
                shutil.rmtree(old, ignore_errors=True)
        _follow(made)
    return made


def _follow(made: Path) -> None:
    """What is not compiled may have changed since: each file at once, because somebody may be reading it."""
    files = [p for part in ("tests", "controller", "hal", "_core", "bench") for p in (ROOT / part).rglob("*")]
    for source in (p for p in files if p.suffix in (".py", ".toml", ".dbc", ".txt", ".tsv")):
        copied = made / source.relative_to(ROOT)
        if not copied.exists() or copied.read_bytes() != source.read_bytes():
            copied.parent.mkdir(parents=True, exist_ok=True)
            beside = copied.with_name(copied.name + ".new")
            beside.write_bytes(source.read_bytes())
            beside.replace(copied)
