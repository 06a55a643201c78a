"""A person's word: hold, setpoint, release, limit, mode, reset. Leased where it moves power, in the audit trail before
it acts, and straight into the process image: it works while the supervisor is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import math
import os
import signal
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.clock import Clock
from controller.instance import Instance, InstanceError, alive, take
from controller.problems import Problem, SiteError
from controller.process import say
from controller.settings import in_unit
from controller.site import Site
from controller.store import Store

SLOT_OPERATOR = 0
SP_NONE, SP_HOLD, SP_BASE = 0, 1, 2
LEASE_DEFAULT_S = 3600.0
LEASE_MAX_S = 86400.0
ALONE_S = 2.0
UNNOTED = -(10**9)  # ids from here down are nanoseconds since boot; the reserve counts its few thousand rows from -1 down
SESSION_LEASE_S = 3.0  # of a setpoint that ends with the log-in that gave it
# An operator's limits, all not set: they only ever tighten.
LIMITS = {
    "import_limit_w": math.inf, "export_limit_w": math.inf, "p_charge_max_w": math.inf, "p_discharge_max_w": math.inf,
    "soc_min": -math.inf, "soc_max": math.inf,
}  # fmt: skip


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


@dataclass(frozen=True)
class Word:
    """What stands in the operator's slot."""

    id: int  # of the command in the audit trail
    kind: int  # SP_HOLD, SP_BASE
    value_w: float
    left_s: float

    @property
    def text(self) -> str:
        """In words."""
        what = "battery held at" if self.kind == SP_HOLD else "added to grid import:"
        return f"{what} {self.value_w / 1e3:+.1f} kW for another {self.left_s:.0f} s"


def word(image: Any, clock: Clock) -> Word | None:
    """The live setpoint of the operator's slot, whoever wrote it; None: there is none."""
    slot = image.setpoint(SLOT_OPERATOR)
    if slot is None or slot["kind"] == SP_NONE:
        return None
    left_s = (slot["lease_until_ns"] - clock.monotonic_ns()) / 1e9
    return Word(int(slot["id"]), int(slot["kind"]), float(slot["value_w"]), left_s) if left_s > 0 else None


def hold(instance: Instance, image: Any, value_w: float, lease_s: float, clock: Clock, who: str = "") -> int:
    """Battery at value_w until the lease ends, `release`, or a new hold; limits stay in force. Returns the id in the
    audit trail.
    """
    with _alone(image):
        number = _audit(instance, clock, who, "hold", value_w, lease_s, f"battery held at {value_w:g} W for {lease_s:g} s")
        until_ns = clock.monotonic_ns() + int(lease_s * 1e9)
        image.write_setpoint(SLOT_OPERATOR, SP_HOLD, value_w, until_ns, number)
    return number


def release(instance: Instance, image: Any, clock: Clock, who: str = "") -> int:
    """The battery follows the load again. Returns the id in the audit trail."""
    with _alone(image):
        number = _audit(instance, clock, who, "release", None, None, "operator slot emptied")
        image.write_setpoint(SLOT_OPERATOR, SP_NONE, 0.0, 0, number)
    return number


def setpoint(instance: Instance, image: Any, kind: int, value_w: float, clock: Clock, who: str = "") -> int:
    """As hold (SP_HOLD) or an addition to grid import (SP_BASE), for SESSION_LEASE_S: whoever gave it renews it, and it
    ends with them. Returns the id in the audit trail.
    """
    words = "battery held at" if kind == SP_HOLD else "grid import moved by"
    with _alone(image):
        number = _audit(instance, clock, who, "setpoint", value_w, SESSION_LEASE_S, f"{words} {value_w:g} W until log-out")
        image.write_setpoint(SLOT_OPERATOR, kind, value_w, clock.monotonic_ns() + int(SESSION_LEASE_S * 1e9), number)
    return number


def renew(image: Any, number: int, clock: Clock) -> bool:
    """Three more seconds for the setpoint of that id; False where another stands in the slot by now, or its lease is over."""
    with _alone(image):
        now = word(image, clock)
        if now is None or now.id != number:
            return False
        image.write_setpoint(SLOT_OPERATOR, now.kind, now.value_w, clock.monotonic_ns() + int(SESSION_LEASE_S * 1e9), number)
    return True


def limit(instance: Instance, image: Any, limits: Mapping[str, float], lease_s: float, clock: Clock, who: str = "") -> int:
    """An operator's limits (fields of struct Limits), beside those that stand already; they tighten and never loosen.

    All of them have one lease: the longest that was asked for. Empty: all of them end. Returns the id in the audit trail."""
    with _alone(image):
        now_ns = clock.monotonic_ns()
        kept = standing_limits(image, clock) if limits else {}
        until_ns = now_ns + int(lease_s * 1e9) if limits else 0
        if kept:
            until_ns = max(until_ns, int(image.operator_limits()["lease_until_ns"]))
        lease_s = (until_ns - now_ns) / 1e9
        words = ", ".join(f"{key} {value:g}" for key, value in (kept | dict(limits)).items())
        text = f"{words} for {lease_s:.0f} s" if limits else "none any more"
        number = _audit(instance, clock, who, "limit", None, lease_s if limits else None, f"operator's limits: {text}")
        image.write_operator_limits(lease_until_ns=until_ns, **(LIMITS | kept | dict(limits) if limits else LIMITS))
    return number


def standing_limits(image: Any, clock: Clock) -> dict[str, float]:
    """The operator's limits that are set and whose lease lives."""
    before = image.operator_limits() or {}
    if before.get("lease_until_ns", 0) <= clock.monotonic_ns():
        return {}
    return {key: float(before[key]) for key in LIMITS if math.isfinite(before[key])}


def park(instance: Instance, image: Any, on: bool, clock: Clock, who: str = "") -> int:
    """`on`: ramp to 0, converter to standby, and stay there; off: start again. Returns the id in the audit trail."""
    with _alone(image):
        number = _audit(instance, clock, who, "mode", None, None, "standby: ramp to 0 and stay" if on else "auto: start again")
        image.request_park(on)
    return number


def reset(instance: Instance, image: Any, clock: Clock, who: str = "") -> int:
    """One edge of the fault reset: FAULT ends when its causes are gone. Returns the id in the audit trail."""
    with _alone(image):
        number = _audit(instance, clock, who, "reset", None, None, "fault reset asked")
        image.request_reset()
    return number


def freeze(instance: Instance) -> str:
    """Asks the supervisor to keep the last 60 s and the next 10 s; where they go, in words. Raises InstanceError."""
    from controller.supervise import FREEZE_NAME, FREEZE_SIGNAL

    gone = "the supervisor is not running; it is started again within 2 s"
    if not alive(instance.supervisor_pid):
        raise InstanceError(gone)
    try:
        fd = os.pidfd_open(instance.supervisor_pid)
        try:
            # a number can have been given to a stranger, for whom the signal is death
            if b"controller.supervise" not in Path(f"/proc/{instance.supervisor_pid}/cmdline").read_bytes():
                raise InstanceError(gone)
            signal.pidfd_send_signal(fd, FREEZE_SIGNAL)
        finally:
            os.close(fd)
    except OSError as e:
        raise InstanceError(f"the supervisor cannot be asked: {e.strerror}") from None
    if instance.out is not None:
        return f"every tick is recorded already, in {instance.out}"
    return f"the last 60 s and the next 10 s go to {Path(instance.store).parent / FREEZE_NAME}"


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


def _audit(instance: Instance, clock: Clock, who: str, command: str, value_w: float | None, lease_s: float | None, text: str) -> int:
    return audit(instance, clock, who or author(), command, value_w, lease_s, text)


def audit(instance: Instance, clock: Clock, who: str, command: str, value_w: float | None, lease_s: float | None, text: str) -> int:
    """A command's row in the audit trail, with its author. Returns its id; where the disk does not take it (a line says so) one that
    no row has and no other command: by it whoever renews a setpoint tells their own from another's. `noted` tells which.
    """
    try:
        store = Store(Path(instance.store), instance.run)
        try:
            return store.add_audit(clock.wall_s(), who, command, value_w, lease_s, text)
        finally:
            store.close()
    except (OSError, sqlite3.Error) as e:
        # Whoever wants 0 W now does not want to hear of a full disk first. The full-rate record still shows the slot.
        say("ballast", f"{instance.store}: {e}: `{command}` acts without an entry in the audit trail")
        return min(-clock.monotonic_ns(), UNNOTED)


def noted(number: int) -> bool:
    """The command of that id stands in the audit trail, or in its reserve."""
    return number > UNNOTED


def named(number: int) -> str:
    """How a command is named to the person who gave it."""
    return f"command {number}" if noted(number) else "not in the audit trail, whose disk takes nothing"


def author() -> str:
    """The user, and from where where ssh tells."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    origin = os.environ.get("SSH_CONNECTION", "").split()
    return f"{user} from {origin[0]}" if origin else user
