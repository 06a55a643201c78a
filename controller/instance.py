"""The running instance of a site: its directory, its lock, and what others need to find it.

One directory a site, `ballast-<site>`: `lock` (held with flock by the parent as long as it lives; the kernel lets go
of it whatever kills the parent), `instance.json` (who runs, where the image is), `site.json` (the settings in force),
`messages` (what its processes say), `plan.txt` (the bus plan in words), `desk` (the socket at which settings are changed).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import select
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from controller import disk

PREFIX = "ballast-"
USERS_RUN = Path("/run/user")
LOCK_S = 0.3  # `status` looks at the lock for a moment: no reason to refuse a start


class InstanceError(Exception):
    """No instance, several, one already running, or one that cannot be reached; the message says what to do."""


@dataclass
class Instance:
    """What `instance.json` holds."""

    site: str
    pid: int
    run: int  # number of this run in the store: wall time of its start in ms
    image_fd: int
    directory: str
    store: str
    out: str | None = None
    virtual: bool = False
    control_pid: int = 0
    supervisor_pid: int = 0
    plant_pid: int = 0
    devices: list[str] = field(default_factory=list)
    buses: list[str] = field(default_factory=list)
    plan: dict[str, Any] | None = None

    def write(self) -> None:
        """Replaces instance.json in one step: a reader sees the old one or the new one."""
        disk.replace(Path(self.directory) / "instance.json", json.dumps(asdict(self), indent=1).encode(), 0o644, durable=False)

    def image_paths(self) -> list[str]:
        """Where the image can be opened: at the parent, or at control where the parent is gone and control still
        ramps down.
        """
        return [f"/proc/{pid}/fd/{self.image_fd}" for pid in (self.pid, self.control_pid) if pid]


def base_directories() -> list[Path]:
    """Where runtime directories may stand, the preferred one first; BALLAST_RUNTIME_DIR alone where it is set."""
    own = os.environ.get("BALLAST_RUNTIME_DIR")
    if own:
        return [Path(own)]
    named = os.environ.get("XDG_RUNTIME_DIR")
    places = [Path(named)] if named else []
    places += [Path("/run"), Path(f"/run/user/{os.geteuid()}"), Path("/tmp")]
    return [p for p in places if p.is_dir()]


def make_directory(site: str) -> Path:
    """The runtime directory of a site, 0700 and ours. Raises InstanceError where somebody else put one there."""
    base = next((p for p in base_directories() if os.access(p, os.W_OK)), None)
    if base is None:
        raise InstanceError("no place for the runtime directory: /run and /tmp are not writable; set XDG_RUNTIME_DIR")
    # In /tmp anybody could have made it first, with a link or with rights that let others write into the image's
    # description.
    path = base / f"{PREFIX}{site}"
    path.mkdir(mode=0o700, exist_ok=True)
    stat = path.lstat()
    if path.is_symlink() or stat.st_uid != os.geteuid() or stat.st_mode & 0o022:
        raise InstanceError(f"{path}: belongs to somebody else or others may write into it; remove it, or set XDG_RUNTIME_DIR")
    return path


def take(fd: int, seconds: float) -> bool:
    """An exclusive flock on a descriptor, tried for about so long: others hold it for moments to look or to write."""
    for _ in range(max(1, round(seconds / 0.02))):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            select.select([], [], [], 0.02)
    return False


def lock(directory: Path, site: str) -> int:
    """Takes the site's lock and writes our pid into it; returns the descriptor to keep. Raises InstanceError with the
    holder's pid.
    """
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not take(fd, LOCK_S):
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "?"
        os.close(fd)
        raise InstanceError(
            f"site {site} is already run by process {holder}; look with `ballast status`, stop it with "
            f"`kill {holder}`, or give this one a name of its own: --set site.name=NAME"
        )
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def is_locked(directory: Path) -> bool:
    """True while a parent holds the lock."""
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def read(directory: Path) -> Instance | None:
    """The instance of a runtime directory, or None."""
    try:
        stat = directory.lstat()
        if stat.st_uid not in (0, os.geteuid()) or stat.st_mode & 0o022 or directory.is_symlink():
            return None  # in /tmp anybody can make one: what it says is a stranger's word
        data = json.loads((directory / "instance.json").read_text())
        return Instance(**data)
    except (OSError, ValueError, TypeError):
        return None


def running() -> list[list[Instance]]:
    """Every instance whose parent, or at least whose control, lives; one list a place, the preferred place first."""
    places = []
    for base in base_directories():
        found = [read(directory) for directory in sorted(base.glob(f"{PREFIX}*"))]
        places.append([i for i in found if i is not None and (is_locked(Path(i.directory)) or holds_image(i))])
    return places


def holds_image(instance: Instance) -> bool:
    """True while its control lives: a process of that number that has the image open, not a stranger that got the number."""
    try:
        return "ballast-image" in os.readlink(f"/proc/{instance.control_pid}/fd/{instance.image_fd}")
    except PermissionError:
        return alive(instance.control_pid)  # another user's: the number is all there is to see
    except OSError:
        return False


def find(site: str | None) -> Instance:
    """The one running instance, or that of `site`; what runs in a preferred place hides the rest. Raises InstanceError."""
    fitting = [[i for i in place if site in (None, i.site)] for place in running()]
    instances = next((place for place in fitting if place), [])
    if not instances:
        if others := _of_others(site):
            raise InstanceError(others)
        raise InstanceError(f"{f'site {site}' if site else 'ballast'} is not running; start it with `ballast run`")
    if len(instances) > 1:
        names = ", ".join(i.site for i in instances)
        raise InstanceError(f"several sites run here: {names}; say which with --site NAME")
    return instances[0]


def _of_others(site: str | None) -> str:
    """Who has started the site, where that is another user; empty where nobody has.

    Root is not let in either: what a directory of somebody else says (which file is the store, which process has the image) would be
    done with root's rights. As its owner nothing can go wrong.
    """
    bases = base_directories()
    if os.geteuid() == 0 and not os.environ.get("BALLAST_RUNTIME_DIR"):
        bases += sorted(USERS_RUN.glob("*"))
    for path in (d for base in bases for d in sorted(base.glob(f"{PREFIX}{site or '*'}"))):
        with contextlib.suppress(OSError):
            uid = path.lstat().st_uid
            if uid == os.geteuid() or (os.access(path, os.R_OK | os.X_OK) and not (path / "instance.json").exists()):
                continue
            try:
                owner = pwd.getpwuid(uid).pw_name
            except KeyError:
                owner = f"'#{uid}'"
            name = path.name.removeprefix(PREFIX)
            return f"site {name} was started by another user: run this as that user, with `sudo -u {owner} ballast ...` ({path})"
    return ""


def open_image(instance: Instance, *, writable: bool) -> Any:
    """The ProcessImage of a running instance. Raises InstanceError with the reason."""
    from _core.image import ImageError, ProcessImage

    reason = "its processes are gone"
    for path in instance.image_paths():
        try:
            return ProcessImage.open(path, writable=writable)
        except (ImageError, OSError) as e:
            reason = str(e)
    raise InstanceError(f"site {instance.site}: {reason}")


def alive(pid: int) -> bool:
    """True for a process that exists and is no zombie."""
    if pid <= 0:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def state_directory(site: str) -> Path:
    """Where history, events and audit trail of a site live across runs."""
    named = os.environ.get("BALLAST_STATE_DIR")
    if named:
        return Path(named) / site
    if os.geteuid() == 0:
        return Path("/var/lib/ballast") / site
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(home) / "ballast" / site
