"""Original file names: private, outside the store, shown in the window only."""

from __future__ import annotations

import json
from pathlib import Path

import platformdirs

from amvlm.imaging import write_bytes_atomically


def _file(store_id: str) -> Path:
    return Path(platformdirs.user_data_dir("napari-amvlm", appauthor=False)) / f"names-{store_id}.json"


def remember_names(store_id: str, names: dict[str, str]) -> None:
    """Add case id → original base name to this user's private list."""
    path = _file(store_id)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    merged = {**original_names(store_id), **names}
    write_bytes_atomically(path, json.dumps(merged, indent=0).encode())
    path.chmod(0o600)


def original_names(store_id: str) -> dict[str, str]:
    """Case id → original base name; empty on a machine that did not import the study."""
    try:
        names = json.loads(_file(store_id).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in names.items()} if isinstance(names, dict) else {}


def forget_names(store_id: str) -> None:
    """Delete a store's private list, for a store that is gone."""
    _file(store_id).unlink(missing_ok=True)
