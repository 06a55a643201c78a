"""Accounts of the console: roles, scrypt hashes, and a lock-out whose delay grows.

One file a site, `accounts.json` (0600) in its state directory. There is no default account: where the file is absent
the first log-in makes the first engineer. A file that cannot be read lets nobody in: it never falls back to "open".
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from controller import disk
from controller.instance import take

FILE = "accounts.json"
ROLES = ("viewer", "operator", "engineer")  # each may what those before it may
# OWASP's scrypt figures at 16 MB: some 50 ms on an edge PC, and no more memory than control locks.
SCRYPT = {"n": 2**14, "r": 8, "p": 5}
MIN_PASSWORD, MAX_PASSWORD = 8, 128
MAX_NAME, MAX_USERS = 20, 50
FREE_TRIES = 3  # in a row, before the first wait
FIRST_WAIT_S, MOST_WAIT_S = 2.0, 300.0
LOCK_S = 2.0
FORGET_S = 3600.0  # failures older than this no longer count
_COMMON = frozenset(
    ("password", "passwort", "ballast1", "12345678", "123456789", "1234567890", "qwertyui", "engineer", "operator", "changeme")
)
_REMEDY = "nobody can log in. As root: restore it, or remove it to set up accounts anew"
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")


class AccountError(Exception):
    """A name, password or account file that cannot be used; the message says what would do."""


class Unlocked(AccountError):
    """The file cannot be changed now."""


@dataclass
class User:
    """One account."""

    role: str
    salt: str
    hash: str
    n: int
    r: int
    p: int


@dataclass
class Failures:
    """Wrong passwords in a row."""

    count: int = 0
    last_wall_s: float = 0.0


@dataclass
class _Book:
    users: dict[str, User] = field(default_factory=dict)
    failures: dict[str, Failures] = field(default_factory=dict)


def valid_name(name: str) -> bool:
    """a-z, 0-9, - _ . and at most 20 of them, beginning with a letter."""
    return 1 <= len(name) <= MAX_NAME and set(name) <= _NAME and name[0].isalpha()


def check_password(name: str, password: str) -> None:
    """Raises AccountError where it is too short, too long, or the first thing that anybody would try."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise AccountError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters, this one {len(password)}")
    if password.lower() in _COMMON or name.lower() in password.lower() or len(set(password)) < 4:
        raise AccountError("that is the first thing anybody would try: use a few words, not your name")


class Accounts:
    """The accounts of one site. Several consoles use them at once: each change is made under a lock, in one step."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self._here: dict[str, Failures] = {}  # failures that the disk did not take

    # ---- the file

    def _read(self) -> _Book:
        try:
            data = json.loads(self.path.read_text())
        except FileNotFoundError:
            return _Book()
        except (OSError, ValueError) as e:
            why = getattr(e, "strerror", None) or "is damaged"
            raise AccountError(f"{self.path}: {why}; {_REMEDY}") from None
        try:
            users = {str(name): User(**row) for name, row in data["users"].items()}
            failures = {str(name): Failures(int(c), float(t)) for name, (c, t) in data.get("failures", {}).items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise AccountError(f"{self.path}: is damaged; {_REMEDY}") from None
        if not users:
            raise AccountError(f"{self.path}: holds no account; as root: remove it to set up accounts anew")
        return _Book(users, failures)

    def _write(self, book: _Book) -> None:
        data = {
            "version": 1,
            "users": {name: asdict(user) for name, user in book.users.items()},
            "failures": {name: [f.count, f.last_wall_s] for name, f in book.failures.items() if f.count},
        }
        try:
            disk.replace(self.path, json.dumps(data, indent=1).encode())
        except OSError as e:
            raise AccountError(f"{self.path}: {e.strerror}: the change was not made") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise Unlocked(f"{self.path.parent}: {e.strerror}: accounts can be read, not changed") from None
        try:
            if not take(fd, LOCK_S):
                raise Unlocked("another console has been changing accounts for 2 s: try again")
            yield
        finally:
            os.close(fd)

    # ---- who there is

    def empty(self) -> bool:
        """True before the first account was made. Raises AccountError for a damaged file."""
        return not self._read().users

    def users(self) -> dict[str, str]:
        """Name -> role."""
        return {name: user.role for name, user in sorted(self._read().users.items())}

    def role(self, name: str) -> str | None:
        """The role of an account; None where it is gone."""
        user = self._read().users.get(name)
        return user.role if user is not None else None

    # ---- changes

    def add(self, name: str, role: str, password: str, *, first: bool = False) -> None:
        """A new account. `first`: only where there is none yet (two people at two lines: one wins). Raises AccountError."""
        if not valid_name(name):
            raise AccountError(f"{name!r} is no user name: a-z, 0-9, - _ . and at most {MAX_NAME} of them, beginning with a letter")
        if role not in ROLES:
            raise AccountError(f"{role!r} is no role: {', '.join(ROLES)}")
        check_password(name, password)
        made = _made(role, password)  # takes its time: before the others have to wait
        with self._locked():
            book = self._read()
            if first and book.users:
                raise AccountError("somebody else has just made the first account; log in")
            if not first and not book.users:
                raise AccountError("there is no account yet: the first log-in makes it")
            if name in book.users:
                raise AccountError(f"user {name} exists")
            if len(book.users) >= MAX_USERS:
                raise AccountError(f"{MAX_USERS} accounts exist, more are not kept")
            book.users[name] = made
            self._write(book)

    def remove(self, name: str) -> None:
        """Removes an account; the last engineer stays. Raises AccountError."""
        with self._locked():
            book = self._read()
            if name not in book.users:
                raise AccountError(f"there is no user {name}")
            if book.users[name].role == "engineer" and sum(u.role == "engineer" for u in book.users.values()) == 1:
                raise AccountError(f"{name} is the last engineer: make another one first")
            del book.users[name]
            book.failures.pop(name, None)
            self._write(book)

    def set_password(self, name: str, password: str) -> None:
        """Raises AccountError."""
        check_password(name, password)
        with self._locked():
            book = self._read()
            if name not in book.users:
                raise AccountError(f"there is no user {name}")
            book.users[name] = _made(book.users[name].role, password)
            self._write(book)

    # ---- log-in

    def wait_s(self, name: str, line: str, wall_s: float) -> float:
        """How long this user, or anybody on this line, has to wait before the next try."""
        failures = self._read().failures | self._here
        return max(_wait_s(failures.get(key), wall_s) for key in (name, _line_key(line)))

    def log_in(self, name: str, password: str, line: str, wall_s: float) -> str | None:
        """The role where name and password fit; else None, and the failure counts for the user and for the line.

        A name that does not exist takes as long as a wrong password. During a wait even the right password is refused.
        """
        try:
            with self._locked():
                return self._try(name, password, line, wall_s)
        except Unlocked:  # a disk that is full or read-only keeps nobody out who has the password; failures count in this process
            return self._try(name, password, line, wall_s)

    def _try(self, name: str, password: str, line: str, wall_s: float) -> str | None:
        book = self._read()
        if not book.users:
            return None  # a file without an account must never come to be
        failures = book.failures | self._here
        keys = (name, _line_key(line))
        if max(_wait_s(failures.get(key), wall_s) for key in keys) > 0:
            return None
        user = book.users.get(name)
        fits = _fits(user if user is not None else _NOBODY, password)
        if user is not None and fits:
            if any(failures.pop(key, None) is not None for key in keys):
                self._keep(book, failures)
            return user.role
        for key in keys if user is not None else keys[1:]:
            before = failures.get(key, Failures())
            old = not 0 <= wall_s - before.last_wall_s < FORGET_S
            failures[key] = Failures(1 if old else before.count + 1, wall_s)
        self._keep(book, {k: f for k, f in failures.items() if wall_s - f.last_wall_s < FORGET_S})
        return None

    def _keep(self, book: _Book, failures: dict[str, Failures]) -> None:
        """On the disk, or in this process where the disk takes nothing."""
        book.failures = failures
        try:
            self._write(book)
            self._here = {}
        except AccountError:
            self._here = failures


def wait_words(left_s: float) -> str:
    """What somebody is told who has to wait."""
    return f"wait {math.ceil(left_s)} s before the next try; until then even the right one is refused"


def _line_key(line: str) -> str:
    return f"line {line}"  # a space: no user name


def _wait_s(failures: Failures | None, wall_s: float) -> float:
    """Doubling from the fourth failure on. A clock that was set back makes nobody wait longer than the delay itself."""
    if failures is None or failures.count < FREE_TRIES:
        return 0.0
    delay_s = min(MOST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures.count - FREE_TRIES, 30))
    return max(0.0, min(delay_s, failures.last_wall_s + delay_s - wall_s))


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "replace"), salt=salt, n=n, r=r, p=p, maxmem=64 << 20, dklen=32)


def _made(role: str, password: str) -> User:
    salt = secrets.token_bytes(16)
    return User(role, salt.hex(), _scrypt(password, salt, **SCRYPT).hex(), **SCRYPT)


def _fits(user: User, password: str) -> bool:
    try:
        got = _scrypt(password, bytes.fromhex(user.salt), user.n, user.r, user.p)
        return hmac.compare_digest(got, bytes.fromhex(user.hash))
    except ValueError:  # figures or hex that nobody here wrote
        return False


_NOBODY = User("viewer", "00" * 16, "00" * 32, **SCRYPT)
