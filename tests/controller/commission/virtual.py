"""A site in virtual time under the guide: a scripted person whose waiting moves the simulation on, and a desk that
acts on the virtual cabinet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _core import image as core
from bench.plant.params import PARAMS
from bench.sim import Simulation
from controller import build
from controller.commission.rig import Rig
from controller.commission.talk import Interrupted
from controller.instance import Instance
from controller.site import Site
from controller.virtual import LoadOptions


class Script:
    """Answers by the first rule whose words stand in the question, else the default, else the first choice.

    `cut_at`: the line is gone at that call of ask or wait (counted from 1); 0: never.
    """

    def __init__(self, step: Callable[[float], None], answers: dict[str, str] | None = None) -> None:
        self.step, self.answers = step, answers or {}
        self.said: list[str] = []
        self.asked: list[str] = []
        self.calls, self.cut_at = 0, 0
        self.waited_s = 0.0
        self.hook: Callable[[], None] | None = None

    def _call(self) -> None:
        self.calls += 1
        if self.cut_at and self.calls >= self.cut_at:
            raise Interrupted("cut by the test")

    def say(self, text: str = "") -> None:
        assert len(text) <= 78, text
        self.said.append(text)

    def ask(self, question: str, *, choices: Sequence[str] = (), default: str = "") -> str:
        self.asked.append(question)
        self._call()
        for words, answer in self.answers.items():
            if words in question:
                return answer
        return default or (choices[0] if choices else "")

    def wait(self, seconds: float, note: str = "") -> None:
        self._call()
        if self.hook is not None:
            self.hook()
        self.waited_s += seconds
        self.step(seconds)


class World:
    """One simulation in GRID with a Rig on it."""

    def __init__(self, tmp: Path, trace: str | float = 300e3, sets: Sequence[str] = (), answers: dict[str, str] | None = None,
                 desk: bool = True, grid: bool = True) -> None:  # fmt: skip
        self.site = build.load_site(None, list(sets), lambda: list(PARAMS))
        self.sim = Simulation(self.site, LoadOptions(trace=trace, repeat=False))
        if grid:
            self.sim.to_grid()
        else:
            self.sim.run_s(10)
        self.tmp = tmp
        self.talk = Script(self._run, answers)
        self.asked: list[dict[str, Any]] = []
        self.instance = Instance(site=self.site.name, pid=0, run=1, image_fd=-1, directory=str(tmp),
                                 store=str(tmp / "history.sqlite"), virtual=True)  # fmt: skip
        self.rig = Rig(self.instance, self.sim.image, self.site, self.sim.maps, self.sim.clock, self.talk, author="tester",
                       ask_desk=self.desk if desk else None)  # fmt: skip
        self.sim.clock.t_ns = self.sim.cosim.now_ns

    def _run(self, seconds: float) -> None:
        self.sim.run_s(seconds)
        self.sim.clock.t_ns = self.sim.cosim.now_ns

    def desk(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        if request["do"] == "plant":
            for key, value in request["set"].items():
                self.sim.plant.set(key, value)
            return {"ok": True}
        return {"ok": False, "problems": ["this desk only knows the plant"]}

    @property
    def slot(self) -> dict[str, Any]:
        return dict(self.sim.image.setpoint(core.SLOT_OPERATOR))

    def quiet(self) -> bool:
        """Nothing of a test is left: slot empty, the virtual cabinet healthy."""
        changed = {k: v for r in self.asked if r["do"] == "plant" for k, v in r["set"].items()}
        return self.slot["kind"] == core.SP_NONE and all(v == 0.0 for v in changed.values()) and not self.rig.left


class Writer(World):
    """A desk that also writes settings, as the parent does: the site's file, and the kernel's Site in the image.

    `worse`: added to the lag that it is asked to try.
    """

    def __init__(self, *args: Any, confirms: bool = True, worse: float = 0.0, **how: Any) -> None:
        super().__init__(*args, **how)
        self.confirms, self.worse = confirms, worse

    def put(self, site: Site) -> None:
        (self.tmp / "site.json").write_text(json.dumps(site.to_dict()))
        self.sim.image.set_site(build.kernel_site(site, self.sim.maps))

    def desk(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "try":
            self.asked.append(request)
            new = Site.from_dict(self.site.to_dict())
            new.values.update(request["changes"])
            self.put(new)
            self.sim.plant.set("pcs.tau_s", self.sim.plant.get("pcs.tau_s") + self.worse)
            return {"ok": True, "id": 7, "problems": []}
        if request["do"] == "back":
            self.asked.append(request)
            self.put(self.site)
            return {"ok": True, "id": 7}
        if request["do"] == "confirm":
            self.asked.append(request)
            why = [{"key": "id", "why": "the time to confirm is over"}]
            return {"ok": True, "note": "no file of yours"} if self.confirms else {"ok": False, "problems": why}
        return super().desk(request)
