"""The engine itself, in real time, on one CAN descriptor: epoll, read(2), frames into the image."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from _core.engine import Engine
from hal.canscan import CanScan

from _core import image as im
from controller import build
from tests.hal.can_links import table


class Running:
    """An engine whose only bus is CAN, on its own thread."""

    def __init__(self, fd: int, port: str, *devices: Any) -> None:
        self.image = im.ProcessImage.create()
        self.image.set_site(build.kernel_site(build.load_site(None, (), lambda: [])) | {"pcs_rvrt_s": 0.0})
        self.scan = CanScan(table(port, *devices))
        self.engine = Engine(self.image, [self.scan], devices=[0], priority=0)
        self.engine.prepare()
        self.engine.set_fd(0, fd)
        self.thread = threading.Thread(target=self.engine.run, daemon=True)
        self.thread.start()

    def until(self, what: Callable[[], Any], seconds: float = 20.0) -> Any:
        """What it returns once that is true; fails after so long."""
        end = time.monotonic() + seconds
        while not (got := what()):
            assert time.monotonic() < end, self.image.device_stats(0)
            time.sleep(0.01)
        return got

    def inputs(self) -> dict[str, Any]:
        r = self.image.latest()
        return dict(r["inp"]) if r else {}

    def close(self) -> None:
        self.image.request_stop(3)
        self.thread.join(5.0)
        assert not self.thread.is_alive()
