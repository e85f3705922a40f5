"""What a study holds, looked at from outside."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def cases(study: Path) -> int:
    """How many cases a study has; 0 where there is none."""
    from amvlm.store import LabelStore

    return len(LabelStore(study).cases()) if (study / "store.sqlite").is_file() else 0


def depths(study: Path) -> list[int]:
    """Slices of a study's cases."""
    from amvlm.store import LabelStore

    return [case.shape[2] for case in LabelStore(study).cases()] if (study / "store.sqlite").is_file() else []


def depth(study: Path) -> int:
    """Slices of a study's first case; 0 where there is none."""
    return next(iter(depths(study)), 0)


def first_case(study: Path) -> str:
    """The id of a study's first case."""
    with closing(sqlite3.connect(study / "store.sqlite")) as connection:
        return str(connection.execute("SELECT case_id FROM case_ ORDER BY case_id").fetchone()[0])


def revisions(study: Path) -> list[tuple[object, ...]]:
    """Every revision of a study, oldest first."""
    with closing(sqlite3.connect(study / "store.sqlite")) as connection:
        return connection.execute("SELECT * FROM revision ORDER BY revision_id").fetchall()


def structures(study: Path) -> list[str]:
    """The names of a study's structures."""
    from amvlm.store import LabelStore

    return [structure.name for structure in LabelStore(study).structures()]
