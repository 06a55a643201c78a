"""`ballast hold` and `ballast release`: a person's word, in the highest ranked slot, leased, and in the audit trail
before it acts.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import math
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from controller.clock import Clock
from controller.instance import Instance, InstanceError, take
from controller.problems import Problem, SiteError
from controller.process import say
from controller.settings import in_unit
from controller.site import Site
from controller.store import Store

SLOT_OPERATOR = 0
SP_NONE, SP_HOLD = 0, 1
LEASE_DEFAULT_S = 3600.0
LEASE_MAX_S = 86400.0
ALONE_S = 2.0


def parse_power(text: str, site: Site) -> float:
    """Watts of "50000", "-20e3" or "50 kW" (battery discharge +). Raises SiteError with what the battery can do."""
    value_w = in_unit(text, "hold_w")
    if value_w is None or not math.isfinite(value_w):
        raise SiteError([Problem("", "hold", text, "is no power", "write watts, or a number with kW: `ballast hold -20kW` charges")])
    limit_w = min(site.num("pcs.p_max_w"), site.num("battery.energy_wh") * site.num("battery.c_rate"))
    if abs(value_w) > limit_w:
        why = f"is outside {-limit_w:g} to {limit_w:g} W, what converter and battery can do"
        raise SiteError([Problem("", "hold", text, why, f"write {math.copysign(limit_w, value_w):g} or less")])
    return value_w


def parse_lease(seconds: float | None) -> float:
    """Seconds of a hold, 1 to 86,400. Raises SiteError."""
    if seconds is None:
        return LEASE_DEFAULT_S
    if not 1 <= seconds <= LEASE_MAX_S:
        raise SiteError(
            [
                Problem(
                    "",
                    "--for",
                    seconds,
                    f"is outside 1 to {LEASE_MAX_S:g} s",
                    "a hold ends by itself, at the latest in a day",
                )
            ]
        )
    return seconds


def hold(instance: Instance, image: Any, value_w: float, lease_s: float, clock: Clock, who: str = "") -> int:
    """Battery at value_w until the lease ends, `release`, or a new hold; limits stay in force. Returns the id in the
    audit trail. `who`: the author, where it is not the user of this process.
    """
    with _alone(image):
        number = _audit(instance, clock, "hold", value_w, lease_s, f"battery held at {value_w:g} W for {lease_s:g} s", who)
        until_ns = clock.monotonic_ns() + int(lease_s * 1e9)
        image.write_setpoint(SLOT_OPERATOR, SP_HOLD, value_w, until_ns, number)
    return number


def release(instance: Instance, image: Any, clock: Clock, who: str = "") -> int:
    """The battery follows the load again. Returns the id in the audit trail."""
    with _alone(image):
        number = _audit(instance, clock, "release", None, None, "operator slot emptied", who)
        image.write_setpoint(SLOT_OPERATOR, SP_NONE, 0.0, 0, number)
    return number


def reset(instance: Instance, image: Any, clock: Clock, who: str = "") -> int:
    """One edge of the fault reset: FAULT ends when its causes are gone. Returns the id in the audit trail."""
    with _alone(image):
        number = _audit(instance, clock, "reset", None, None, "fault reset asked", who)
        image.request_reset()
    return number


@contextlib.contextmanager
def _alone(image: Any) -> Iterator[None]:
    """Two people at two terminals write one after the other: a slot has one writer at a time. The kernel lets go of it
    when a writer dies. Raises InstanceError.
    """
    if not take(image.fd, ALONE_S):
        raise InstanceError("another `ballast hold` or `release` has been at it for 2 s; try again, or end that process")
    try:
        yield
    finally:
        fcntl.flock(image.fd, fcntl.LOCK_UN)


def _audit(
    instance: Instance, clock: Clock, command: str, value_w: float | None, lease_s: float | None, text: str, who: str
) -> int:  # fmt: skip
    return audit(instance, clock, who or author(), command, value_w, lease_s, text)


def audit(instance: Instance, clock: Clock, who: str, command: str, value_w: float | None, lease_s: float | None, text: str) -> int:
    """A command's row in the audit trail, with its author; 0 (and a line) where the disk does not take it."""
    try:
        store = Store(Path(instance.store), instance.run)
        try:
            return store.add_audit(clock.wall_s(), who, command, value_w, lease_s, text)
        finally:
            store.close()
    except (OSError, sqlite3.Error) as e:
        # Whoever wants 0 W now does not want to hear of a full disk first. The full-rate record still shows the slot.
        say("ballast", f"{instance.store}: {e}: `{command}` acts without an entry in the audit trail")
        return 0


def author() -> str:
    """The user, and from where where ssh tells."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    origin = os.environ.get("SSH_CONNECTION", "").split()
    return f"{user} from {origin[0]}" if origin else user
