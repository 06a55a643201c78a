"""The settings in force as the processes of a site find them: site.json, the way back to the one before, and plan.txt."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from controller.process import say
from controller.site import Site

SITE_NAME = "site.json"
PLAN_NAME = "plan.txt"  # the bus plan in words, as `ballast check` prints it


class InForce:
    """The files. `out`: a second directory that shows the same settings beside the record, where a run has one.

    Each is replaced in one step. The way back is a link to the file before: it needs no room on a disk that has become full.
    """

    def __init__(self, directory: Path, out: Path | None) -> None:
        self.directory, self.out = directory, out
        self._path = directory / SITE_NAME
        self._new, self._before = self._path.with_suffix(".new"), self._path.with_suffix(".before")
        self._before.unlink(missing_ok=True)

    def begin(self, site: Site, plan: str) -> None:
        """At the start of a run. Raises OSError."""
        self.stage(site)
        self._new.replace(self._path)
        if self.out is not None:
            (self.out / SITE_NAME).write_text(_text(site))
        self._write_plan(plan)

    def stage(self, site: Site) -> None:
        """Writes the next site.json beside the one in force. Raises OSError, and then nothing has changed."""
        self._new.write_text(_text(site))

    def commit(self) -> None:
        """What was staged is in force; `back` knows the way. Raises OSError, and then nothing has changed."""
        self._before.unlink(missing_ok=True)
        os.link(self._path, self._before)
        self._new.replace(self._path)

    def back(self, site: Site) -> None:
        """The file before `commit` is in force again; `site`: what it holds, should it have gone."""
        try:
            self._before.replace(self._path)
        except OSError:
            try:
                self.stage(site)
                self._new.replace(self._path)
            except OSError as e:  # the supervisor keeps the trial's limits, the kernel has its own
                say("ballast", f"{self._path}: {e.strerror}: the supervisor is not told of the old settings")

    def keep(self) -> None:
        """There is no way back any more."""
        with contextlib.suppress(OSError):
            self._before.unlink(missing_ok=True)

    def show(self, site: Site, plan: str) -> None:
        """What only people and reports read; said where the disk does not take it."""
        try:
            self._write_plan(plan)
            if self.out is not None:
                (self.out / SITE_NAME).write_text(_text(site))
        except OSError as e:
            say("ballast", f"{e.filename}: {e.strerror}")

    def _write_plan(self, plan: str) -> None:
        # Whatever the locale is, and whatever bytes the command line had for a port: people shall read it.
        (self.directory / PLAN_NAME).write_text(plan + "\n", encoding="utf-8", errors="backslashreplace")


def _text(site: Site) -> str:
    return json.dumps(site.to_dict(), indent=1)
