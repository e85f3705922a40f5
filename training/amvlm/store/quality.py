"""What a model's pseudo-labels look like, as the newest look gave it. Functions of an open connection."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterable
from typing import Any

from amvlm.store.cases import number_of, readable_rows, text_of
from amvlm.store.labels import now
from amvlm.store.records import Quality

_TEXTS = ("case_id", "structure", "model_fingerprint", "time")
_COLUMNS = tuple(field.name for field in dataclasses.fields(Quality))


def save_quality(connection: sqlite3.Connection, qualities: Iterable[Quality]) -> None:
    """Keep what was seen, replacing what an earlier model gave."""
    rows = [{**vars(q), "flags": json.dumps(q.flags), "time": q.time or now()} for q in qualities]
    names, places = ", ".join(_COLUMNS), ", ".join(f":{name}" for name in _COLUMNS)
    connection.executemany(f"INSERT OR REPLACE INTO quality ({names}) VALUES ({places})", rows)


def _quality(row: sqlite3.Row) -> Quality:
    values: dict[str, Any] = {column: text_of(row, column) for column in _TEXTS}
    values |= {column: number_of(row, column) for column in _COLUMNS if column not in (*_TEXTS, "flags")}
    return Quality(**values, flags=tuple(map(str, json.loads(row["flags"]))))


def select_quality(connection: sqlite3.Connection) -> dict[tuple[str, str], Quality]:
    """(case id, structure) → what the newest look at its pseudo-label gave."""
    rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM quality").fetchall()
    with readable_rows():
        qualities = [_quality(row) for row in rows]
    return {(q.case_id, q.structure): q for q in qualities}
