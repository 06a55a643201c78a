"""One target under libFuzzer: python -m tests.fuzz TARGET DIRECTORY [libFuzzer's options]. Ends with 0, or with what was found."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys

import atheris

from tests.fuzz.targets import TARGETS


def main() -> None:
    target = TARGETS[sys.argv[1]]
    # atheris takes an empty list for everything; what is compiled brings its own counters
    with atheris.instrument_imports(include=list(target.python)) if target.python else contextlib.nullcontext():
        for name in target.python:  # also what the decoders import only when they need it
            importlib.import_module(name)
        run = getattr(importlib.import_module(f"tests.fuzz.{target.module}"), target.name)
    # to merge, libFuzzer starts itself again, and again after an input that ended it
    atheris.Setup([os.environ.get("FUZZ_COMMAND", sys.argv[0]), *sys.argv[2:]], run)
    if target.native:
        _attach()
    atheris.Fuzz()


def _attach() -> None:
    """The counters of the compiled code, to the libFuzzer that atheris has loaded."""
    cover = ctypes.CDLL(os.environ["LD_PRELOAD"].split()[0])
    from atheris import core_with_libfuzzer  # type: ignore[attr-defined]  # native loads it as late as in Fuzz()

    core = str(core_with_libfuzzer.__file__)
    missing = cover.cover_attach(core.encode())
    if missing:
        raise SystemExit(f"{missing} functions of libFuzzer are missing in {core}")


if __name__ == "__main__":
    main()
