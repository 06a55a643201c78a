"""History, events and audit trail of a site in SQLite: WAL, synchronous FULL, several processes at once.

History is one row a second and is committed in batches (the ring keeps 60 s, so a killed supervisor loses none of
it); events and commands are committed one by one, before anybody is told that they were taken.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HISTORY_COLUMNS = (
    "run", "wall_s", "t_ns", "tick", "load_w", "grid_w", "grid_min_w", "grid_max_w", "batt_w", "ref_w", "soc",
    "mode", "limits", "alarms", "missed", "not_held_s", "wake_max_us", "position",
)  # fmt: skip
KEEP_HISTORY_S = 30 * 86400.0
BUSY_S = 5.0

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS history ({", ".join(HISTORY_COLUMNS)});
CREATE INDEX IF NOT EXISTS history_wall ON history (wall_s);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, run INTEGER, wall_s REAL, t_ns INTEGER, kind TEXT, text TEXT
);
CREATE TABLE IF NOT EXISTS audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT, wall_s REAL, who TEXT, command TEXT, value_w REAL, lease_s REAL, text TEXT
);
"""


class Store:
    """One connection. Raises OSError with the path where the file cannot be opened or is no database.

    `run` tells the runs of a site apart (monotonic times begin anew with each boot).
    """

    def __init__(self, path: Path, run: int = 0, *, readonly: bool = False) -> None:
        self.path, self.run = path, run
        try:
            if readonly:
                self.db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
                return
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
            self.db.executescript(_SCHEMA)
        except sqlite3.Error as e:
            raise OSError(f"{path}: {e}") from None

    def add_history(self, rows: Sequence[Sequence[Any]]) -> None:
        """Rows in the order of HISTORY_COLUMNS without `run`, in one transaction."""
        if not rows:
            return
        marks = ", ".join("?" * len(HISTORY_COLUMNS))
        self.db.execute("BEGIN")
        self.db.executemany(f"INSERT INTO history VALUES ({marks})", [(self.run, *row) for row in rows])
        self.db.execute("COMMIT")

    def prune(self, wall_s: float) -> None:
        """Forgets history older than 30 days (250 MB); events and audit stay."""
        self.db.execute("DELETE FROM history WHERE wall_s < ?", (wall_s - KEEP_HISTORY_S,))

    def add_event(self, wall_s: float, t_ns: int, kind: str, text: str) -> None:
        """One event, durable on return."""
        row = (self.run, wall_s, t_ns, kind, text)
        self.db.execute("INSERT INTO events (run, wall_s, t_ns, kind, text) VALUES (?, ?, ?, ?, ?)", row)

    def add_audit(self, wall_s: float, who: str, command: str, value_w: float | None, lease_s: float | None, text: str) -> int:
        """One command with its author, durable on return; the id goes into the setpoint, and from there into every
        record.
        """
        row = (wall_s, who, command, value_w, lease_s, text)
        done = self.db.execute("INSERT INTO audit (wall_s, who, command, value_w, lease_s, text) VALUES (?, ?, ?, ?, ?, ?)", row)
        return int(done.lastrowid or 0)

    def history(self, since_wall_s: float, limit: int = 3600) -> list[tuple[Any, ...]]:
        """The newest rows since, oldest first, as (wall_s, load_w, grid_w, grid_min_w, grid_max_w, batt_w, soc)."""
        sql = (
            "SELECT wall_s, load_w, grid_w, grid_min_w, grid_max_w, batt_w, soc FROM history WHERE wall_s >= ? ORDER BY wall_s DESC LIMIT ?"
        )
        return self.db.execute(sql, (since_wall_s, limit)).fetchall()[::-1]

    def events(self, limit: int = 1000) -> list[tuple[float, int, str, str]]:
        """(wall_s, t_ns, kind, text) of this run, oldest first."""
        sql = "SELECT wall_s, t_ns, kind, text FROM events WHERE run = ? ORDER BY id LIMIT ?"
        return self.db.execute(sql, (self.run, limit)).fetchall()

    def last_position(self) -> int | None:
        """Ring position after the last history row of this run; None where it has none."""
        row = self.db.execute("SELECT MAX(position) FROM history WHERE run = ?", (self.run,)).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def audit(self, limit: int = 100) -> Iterable[tuple[Any, ...]]:
        """The newest commands first: (id, wall_s, who, command, value_w, lease_s, text)."""
        return self.db.execute("SELECT * FROM audit ORDER BY id DESC LIMIT ?", (limit,)).fetchall()

    def close(self) -> None:
        """Closes the connection."""
        self.db.close()
