"""Unsaved work: touched slices, kept until the label is accepted. Functions of an open connection."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.store.cases import require
from amvlm.store.labels import select_current


def save_slices(
    connection: sqlite3.Connection, case_id: str, structure: str, slices: Mapping[int, NDArray[np.uint8]]
) -> None:
    """Keep slices, indexed along the last storage axis, each of shape (I, J), uint8."""
    require(connection, case_id, structure)
    rows = [
        (case_id, structure, int(index), zlib.compress(np.ascontiguousarray(plane, dtype=np.uint8).tobytes(), 1))
        for index, plane in slices.items()
    ]
    connection.executemany(
        "INSERT OR REPLACE INTO draft_slice (case_id, structure, slice_index, voxels) VALUES (?, ?, ?, ?)", rows
    )
    if select_current(connection, case_id, structure) is None:
        connection.execute(
            "INSERT OR REPLACE INTO state (case_id, structure, state, revision_id) VALUES (?, ?, 'draft', NULL)",
            (case_id, structure),
        )


def load_slices(
    connection: sqlite3.Connection, case_id: str, structure: str, shape: tuple[int, int, int]
) -> dict[int, NDArray[np.uint8]]:
    """Index along the last storage axis → plane of shape (I, J), uint8 in {0, 1}.

    Raises
    ------
    UserError
        If a slice does not fit the case's image.
    """
    rows = connection.execute(
        "SELECT slice_index, voxels FROM draft_slice WHERE case_id = ? AND structure = ?", (case_id, structure)
    ).fetchall()
    planes = {}
    for row in rows:
        inflater = zlib.decompressobj()
        try:
            voxels = inflater.decompress(row["voxels"], shape[0] * shape[1] + 1)
            plane = np.frombuffer(voxels, np.uint8).reshape(shape[:2])
            fits = 0 <= row["slice_index"] < shape[2]
        except (zlib.error, ValueError, TypeError) as error:
            raise _damaged() from error
        if not fits:
            raise _damaged()
        planes[int(row["slice_index"])] = (plane > 0).astype(np.uint8)
    return planes


def _damaged() -> UserError:
    return UserError("unsaved work of this case is damaged", remedy="Accept a mask or mark it absent with amvlm judge.")


def discard_slices(connection: sqlite3.Connection, case_id: str, structure: str) -> None:
    """Forget unsaved work; a label that counts stays."""
    pair = (case_id, structure)
    connection.execute("DELETE FROM draft_slice WHERE case_id = ? AND structure = ?", pair)
    connection.execute("DELETE FROM state WHERE case_id = ? AND structure = ? AND state = 'draft'", pair)
