"""Every input that is kept, run once through the modules as they are built here: what was found stays found. Part of `make check`."""

from __future__ import annotations

import importlib
import time

import pytest

from tests.fuzz import packed
from tests.fuzz.run import HANG_S
from tests.fuzz.targets import TARGETS, Target

FEWEST = 10  # inputs of a corpus that is one


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_whatever_was_kept_is_survived(target: Target) -> None:
    run = getattr(importlib.import_module(f"tests.fuzz.{target.module}"), target.name)
    inputs = packed.read(target.name)
    assert len(inputs) >= FEWEST
    for data in inputs:
        start = time.monotonic()
        try:
            run(data)
        except Exception as e:
            raise AssertionError(f"{target.name}: {data!r}") from e
        assert time.monotonic() - start < HANG_S, data


def test_a_corpus_comes_back_as_it_was_packed(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "CORPUS", tmp_path)
    packed.write("x", [b"\xff\n'\"", b"", b"\xff\n'\""])
    with packed.path("x").open("a", encoding="ascii") as f:
        f.write("# a crash\nb'crash'\n")
    packed.write("x", [b"other", b"crash"])
    assert packed.read("x") == [b"other", b"crash"] and "# a crash" in packed.path("x").read_text(encoding="ascii")
