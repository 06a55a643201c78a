"""History and audit trail of a site in SQLite: WAL, synchronous FULL, several processes at once.

The audit trail is one table: every command with its author, every mode, limit, setpoint slot, alarm, device, and what
else a person would want to find again. A row is committed before anybody is told that it was taken. Where the disk
takes no more (full, read-only, an I/O error) rows go to the reserve (`reserve.py`), and come back from there.
History is one row a second, committed in batches (the ring keeps 60 s, so a killed supervisor loses none of it).
"""

from __future__ import annotations

import contextlib
import heapq
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from controller.reserve import Reserve, ReserveError

HISTORY_COLUMNS = (
    "run", "wall_s", "t_ns", "tick", "load_w", "grid_w", "grid_min_w", "grid_max_w", "batt_w", "ref_w", "soc",
    "mode", "limits", "alarms", "missed", "not_held_s", "wake_max_us", "position",
)  # fmt: skip
KEEP_HISTORY_S = 30 * 86400.0
BUSY_S = 2.0
SCHEMA_VERSION = 1
OURSELVES = "ballast"  # the author of what happened by itself
TYPED = "typed"  # what somebody typed at the console: in the trail, shown when asked for
ENDINGS = (" cleared", " answers", " is open", " takes it again", " off")  # of events that tell an end
MAX_FAULT_ROWS = 2000

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS history ({", ".join(HISTORY_COLUMNS)});
CREATE INDEX IF NOT EXISTS history_wall ON history (wall_s);
CREATE TABLE IF NOT EXISTS audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER, wall_s REAL, t_ns INTEGER, who TEXT, kind TEXT, command TEXT,
    value_w REAL, lease_s REAL, text TEXT
);
CREATE INDEX IF NOT EXISTS audit_run ON audit (run, id);
PRAGMA user_version = {SCHEMA_VERSION};
"""
_COLUMNS = "id, wall_s, who, kind, command, value_w, lease_s, text"
_AUDIT = "INSERT INTO audit (run, wall_s, t_ns, who, kind, command, value_w, lease_s, text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_AUDIT_AGAIN = _AUDIT.replace("INSERT", "INSERT OR IGNORE").replace("(run,", "(id, run,").replace("(?,", "(?, ?,")
# What stood in two tables before: commands alone in `audit`, all else in `events`.
_FROM_0 = """
ALTER TABLE audit RENAME TO audit_0;
{schema}
INSERT INTO audit SELECT id, NULL, wall_s, NULL, who, 'command', command, value_w, lease_s, text FROM audit_0;
INSERT INTO audit (run, wall_s, t_ns, who, kind, text) SELECT run, wall_s, t_ns, 'ballast', kind, text FROM events;
DROP TABLE audit_0;
DROP TABLE events;
"""


@dataclass(frozen=True)
class Trail:
    """One row of the audit trail, as a person reads it."""

    wall_s: float
    who: str
    kind: str
    command: str
    text: str

    @property
    def over(self) -> bool:
        """It tells that something has ended."""
        return self.text.endswith(ENDINGS)


class Store:
    """One connection. Raises OSError with the path where the file cannot be opened or is no database, and where not
    even the reserve can take a row.

    `run` tells the runs of a site apart (monotonic times begin anew with each boot). `error`: why SQLite did not take
    the last row; empty: it did. `connect`: sqlite3.connect, or what a test puts in its place.
    """

    def __init__(self, path: Path, run: int = 0, *, readonly: bool = False, connect: Any = sqlite3.connect) -> None:
        self.path, self.run, self.error, self.lost_rows = path, run, "", 0
        self.reserve = Reserve(path.with_suffix(".reserve"))
        self.db: Any = None
        self._prepared = False
        try:
            if readonly:
                self.db = connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
                self._prepared = True
                return
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.db = connect(path, timeout=BUSY_S, isolation_level=None)
            self._prepare()
        except sqlite3.Error as e:
            if not self.reserve.usable():
                raise OSError(f"{path}: {e}") from None
            self.error = str(e)
            return
        self._take_back()

    def _prepare(self) -> None:
        """Tables of this version, and the reserve. Raises sqlite3.Error."""
        if self.db is None:
            raise sqlite3.OperationalError(self.error)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"was written by a newer ballast (schema {version}, this one {SCHEMA_VERSION})")
        if version < SCHEMA_VERSION:
            old = self.db.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'events'").fetchone()[0]
            script = _FROM_0.format(schema=_SCHEMA) if old else _SCHEMA
            try:
                self.db.executescript(f"BEGIN IMMEDIATE; {script} COMMIT;")
            except sqlite3.Error:
                self._roll_back()
                raise
        lowest = self.db.execute("SELECT MIN(id) FROM audit").fetchone()[0] or 0
        self.reserve.make(min(0, lowest))
        self._prepared = True

    def _take_back(self) -> None:
        """Rows of the reserve into the database, in one transaction, then the reserve is empty. `error` where not."""
        if self.reserve.empty() or not self._prepared:
            return
        with self.reserve.held() as rows:
            try:
                self.db.execute("BEGIN IMMEDIATE")
                # A cut between commit and clearing brings a row twice; its number tells.
                self.db.executemany(_AUDIT_AGAIN, rows)
                self.db.execute("COMMIT")
            except sqlite3.Error as e:
                self._roll_back()
                self.error = str(e)
                return
            self.reserve.clear()
        self.error = ""

    def _roll_back(self) -> None:
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    # ---- history

    def add_history(self, rows: Sequence[Sequence[Any]]) -> None:
        """Rows in the order of HISTORY_COLUMNS without `run`, in one transaction; lost (and counted) where the disk
        takes no more.
        """
        if not rows:
            return
        marks = ", ".join("?" * len(HISTORY_COLUMNS))
        try:
            if not self._prepared:
                self._prepare()
            self.db.execute("BEGIN")
            self.db.executemany(f"INSERT INTO history VALUES ({marks})", [(self.run, *row) for row in rows])
            self.db.execute("COMMIT")
        except sqlite3.Error as e:
            if self.db is not None:
                self._roll_back()
            self.error = str(e)
            self.lost_rows += len(rows)
            return
        self.error = ""
        self._take_back()

    def prune(self, wall_s: float) -> None:
        """Forgets history older than 30 days (250 MB); the audit trail stays."""
        try:
            if self._prepared:
                self.db.execute("DELETE FROM history WHERE wall_s < ?", (wall_s - KEEP_HISTORY_S,))
        except sqlite3.Error as e:
            self.error = str(e)

    def history(self, since_wall_s: float, limit: int = 3600) -> list[tuple[Any, ...]]:
        """The newest rows since, oldest first, as (wall_s, load_w, grid_w, grid_min_w, grid_max_w, batt_w, soc)."""
        sql = (
            "SELECT wall_s, load_w, grid_w, grid_min_w, grid_max_w, batt_w, soc FROM history WHERE wall_s >= ? ORDER BY wall_s DESC LIMIT ?"
        )
        return list(self.db.execute(sql, (since_wall_s, limit)).fetchall()[::-1])

    def last_position(self) -> int | None:
        """Ring position after the last history row of this run; None where it has none."""
        if not self._prepared:
            return None
        row = self.db.execute("SELECT MAX(position) FROM history WHERE run = ?", (self.run,)).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    # ---- audit trail

    def add_event(self, wall_s: float, t_ns: int, kind: str, text: str, command: str | None = None) -> None:
        """What happened by itself, durable on return. `command`: the id of the fault that it tells of (_core/faults.py)."""
        self._add((self.run, wall_s, t_ns, OURSELVES, kind, command, None, None, text))

    def add_audit(self, wall_s: float, who: str, command: str, value_w: float | None, lease_s: float | None, text: str) -> int:
        """One command with its author, durable on return; the id goes into the setpoint, and from there into every
        record. It is negative where the reserve had to take it.
        """
        return self._add((self.run, wall_s, None, who, "command", command, value_w, lease_s, text))

    def _add(self, row: tuple[Any, ...]) -> int:
        """The row's id. Raises OSError where neither database nor reserve takes it."""
        try:
            if not self._prepared:
                self._prepare()
            self._take_back()
            if not self.reserve.empty():  # the order of the trail is the order of what happened
                raise sqlite3.OperationalError(self.error or "rows wait in the reserve")
            number = int(self.db.execute(_AUDIT + " RETURNING id", row).fetchall()[0][0])
        except sqlite3.Error as e:
            self.error = str(e)
            try:
                return self.reserve.add(row)
            except ReserveError as why:
                raise OSError(f"{self.path}: {e}; {why}") from None
        self.error = ""
        return number

    def events(self, limit: int = 1000) -> list[tuple[float, int, str, str]]:
        """(wall_s, t_ns, kind, text) of this run without commands, oldest first; with what waits in the reserve."""
        sql = "SELECT wall_s, t_ns, kind, text FROM audit WHERE run = ? AND kind <> 'command' ORDER BY wall_s, ABS(id) LIMIT ?"
        rows = self.db.execute(sql, (self.run, limit)).fetchall() if self._prepared else []
        with self.reserve.held() as waiting:
            rows += [(r[2], r[3], r[5], r[9]) for r in waiting if r[1] == self.run and r[5] != "command"]
        return rows[:limit]

    def trail(self, limit: int, word: str = "", *, kind: str = "") -> list[Trail]:
        """The newest rows of all runs, oldest first. `word`: only those that hold it; "typed": what was typed at consoles."""
        fits, args = "(? = '' OR kind = ?)", [kind, kind]
        if word == TYPED:
            fits += " AND command = ?"
            args.append(TYPED)
        else:
            whole = "LOWER(who || ' ' || kind || ' ' || COALESCE(command, '') || ' ' || text)"
            fits += f" AND COALESCE(command, '') <> ? AND (? = '' OR INSTR({whole}, ?))"
            args += [TYPED, word, word]
        return _trails(self._newest(limit, fits, args))

    def faults(self, since_wall_s: float) -> list[Trail]:
        """What came, went and was acknowledged since, oldest first: rows whose command names a fault, or is "ack"."""
        fits = "wall_s >= ? AND command IS NOT NULL AND (kind <> 'command' OR command = 'ack')"
        return _trails(self._newest(MAX_FAULT_ROWS, fits, [since_wall_s]))

    def _newest(self, limit: int, fits: str, args: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The newest rows of all runs, newest first, as _COLUMNS; with what waits in the reserve.

        Rows stand in the order of their numbers, which a clock that is set back does not change. Those of the reserve count down from
        -1 in an order of their own; wall time says where they belong, and of equals they are the later ones.
        """
        select = f"SELECT {_COLUMNS} FROM audit WHERE {{}} AND {fits} ORDER BY ABS(id) DESC LIMIT ?"
        own: list[tuple[Any, ...]] = []
        reserved: dict[int, tuple[Any, ...]] = {}  # by number: after a cut a row may be here and there
        if self._prepared:
            own = self.db.execute(select.format("id > 0").replace("ABS(id)", "id"), (*args, limit)).fetchall()
            reserved = {row[0]: row for row in self.db.execute(select.format("id < 0"), (*args, limit))}
        if not self.reserve.empty():
            with self.reserve.held() as waiting, contextlib.closing(sqlite3.connect(":memory:")) as beside:
                beside.executescript(_SCHEMA)
                beside.executemany(_AUDIT_AGAIN, waiting)
                reserved |= {row[0]: row for row in beside.execute(select.format("id < 0"), (*args, limit))}
        merged = heapq.merge([reserved[n] for n in sorted(reserved)], own, key=lambda row: row[1], reverse=True)
        return list(islice(merged, limit))

    def author(self, number: int) -> str | None:
        """Who gave the command of that id."""
        row = self.db.execute("SELECT who FROM audit WHERE id = ?", (number,)).fetchone()
        if row is not None:
            return str(row[0])
        with self.reserve.held() as waiting:
            return next((str(r[4]) for r in waiting if r[0] == number), None)

    def audit(self, limit: int = 100) -> Iterable[tuple[Any, ...]]:
        """The newest commands first: (id, wall_s, who, command, value_w, lease_s, text)."""
        rows = self._newest(limit, "kind = 'command'", [])
        return [(number, wall_s, who, *rest) for number, wall_s, who, _, *rest in rows]

    def close(self) -> None:
        """Closes the connection."""
        if self.db is not None:
            self.db.close()


def _trails(newest: Sequence[tuple[Any, ...]]) -> list[Trail]:
    """Oldest first."""
    return [Trail(wall_s, who, kind, command or "", text) for _, wall_s, who, kind, command, _, _, text in newest[::-1]]
