"""Runs a target for a while and says what came of it.

By hand: python -m tests.fuzz.run TARGET SECONDS [--keep]. --keep merges what reached new coverage into the target's corpus.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import checked, packed
from tests.fuzz.targets import TARGETS, Target

HANG_S = 10  # one input; the slowest takes some ten milliseconds
RSS_MB = 2048
LONGEST_KEPT = 600  # bytes of an input that is kept for its coverage alone
PATIENCE_S = 240  # to import everything, instrument it, and run the corpus


@dataclass(frozen=True)
class Outcome:
    """What a run has done: inputs tried, edges reached by the corpus and at the end, and an input that found something."""

    runs: int
    cov_before: int
    cov: int
    found: bytes | None
    text: str


def run(target: Target, seconds: int, tree: Path | None = None, seeds: list[bytes] | None = None, keep: bool = False) -> Outcome:
    """Fuzzes for so long, beginning with the kept corpus (or `seeds`), in the checked build (or `tree`). Raises checked.Unavailable."""
    inputs = packed.read(target.name) if seeds is None else seeds
    with tempfile.TemporaryDirectory(prefix="ballast-fuzz-") as name:
        work = Path(name)
        corpus = work / "corpus"
        corpus.mkdir()
        for i, data in enumerate(inputs):
            (corpus / f"{i:04}").write_bytes(data)
        words = _words(inputs)
        (work / "words").write_text(words)
        options = [
            f"-max_total_time={seconds}", f"-max_len={target.max_len}", "-len_control=0", f"-timeout={HANG_S}", f"-rss_limit_mb={RSS_MB}",
            *([f"-dict={work / 'words'}"] if words else []), f"-artifact_prefix={work}/found-",
        ]  # fmt: skip
        text = _fuzz(target, [str(corpus), *options], tree, seconds + PATIENCE_S)
        found = next((p.read_bytes() for p in sorted(work.glob("found-*"))), None)
        if keep and found is None:
            _keep(target, corpus, work)
    return Outcome(*_figures(text), found, text)


def _fuzz(target: Target, arguments: list[str], tree: Path | None, patience_s: float) -> str:
    if target.native:
        tree = tree or checked.tree()
        env = checked.environment(tree)
    else:
        tree, env = checked.ROOT, dict(os.environ)
    command = [sys.executable, "-m", "tests.fuzz", target.name, *arguments]
    r = subprocess.run(command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=patience_s, check=False)
    return r.stdout.decode("utf-8", "replace") + f"\nended with {r.returncode}\n"


def _figures(text: str) -> tuple[int, int, int]:
    rows = [(int(a), int(b)) for a, b in re.findall(r"^#(\d+)\s+[A-Za-z]+\s+cov: (\d+)", text, re.MULTILINE)]
    before = re.search(r"^#\d+\s+INITED\s+cov: (\d+)", text, re.MULTILINE)
    return (rows[-1][0], int(before.group(1)) if before else 0, rows[-1][1]) if rows else (0, 0, 0)


def _words(inputs: list[bytes]) -> str:
    """A dictionary for libFuzzer: the words of the corpus."""
    words = {w for data in inputs for w in re.findall(rb"[A-Za-z_][A-Za-z_0-9]{2,23}", data)}
    return "".join(f'"{w.decode()}"\n' for w in sorted(words)[:1000])


def _keep(target: Target, corpus: Path, work: Path) -> None:
    """What is left of the corpus without any loss of coverage, small inputs first."""
    merged, again = work / "merged", work / "again"
    merged.mkdir()
    again.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fuzz {target.name} "$@"\n')
    again.chmod(0o700)
    longest = max([LONGEST_KEPT, *map(len, packed.read(target.name))])
    os.environ["FUZZ_COMMAND"] = str(again)
    text = _fuzz(target, ["-merge=1", f"-max_len={longest}", str(merged), str(corpus)], None, 3600)
    kept = [p.read_bytes() for p in merged.iterdir()]
    if not kept:
        raise RuntimeError(f"nothing came of the merge:\n{text[-3000:]}")
    packed.write(target.name, kept)


def main() -> None:
    target, seconds = TARGETS[sys.argv[1]], int(sys.argv[2])
    with contextlib.suppress(KeyboardInterrupt):
        out = run(target, seconds, keep="--keep" in sys.argv)
        print(f"{target.name}: {out.runs} inputs, {out.cov_before} edges by the corpus, {out.cov} at the end")
        if out.found is not None or not out.runs:
            print(out.text[-6000:])
            print("found by", out.found)
            sys.exit(1)


if __name__ == "__main__":
    main()
