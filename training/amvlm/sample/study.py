"""Which bundled volume plays which part, and how the sample study is laid out in a user's folder."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from amvlm.exchange import import_study
from amvlm.store import LabelStore
from amvlm.store.records import Split

_FOLDER = Path(str(resources.files("amvlm.sample")))
ROLES_FILE = _FOLDER / "study" / "roles.json"


def _roles() -> dict[str, list[str]]:
    return dict(json.loads(ROLES_FILE.read_text("utf-8")))


def _image(name: str) -> str:
    return f"{name}.nii.gz"


START_SET: tuple[str, ...] = tuple(_image(name) for name in _roles()["start"])
"""Images whose masks made the bundled model; the demo neither accepts nor tests them."""


def sample_splits() -> dict[str, Split]:
    """Image name → split: the start set and the pool train, some validate, some test."""
    splits: dict[str, Split] = {}
    parts: tuple[tuple[str, Split], ...] = (("start", "train"), ("pool", "train"), ("val", "val"), ("test", "test"))
    for role, split in parts:
        splits |= {_image(name): split for name in _roles()[role]}
    return splits


def first_scan() -> Path:
    """A bundled scan to look at."""
    return _FOLDER / "study" / "imagesTr" / _image(_roles()["pool"][0])


def bundled_model_folder() -> Path:
    """The folder of the bundled model."""
    return _FOLDER / "model"


def copy_sample_study(into: Path, accept_start_set: bool = True) -> LabelStore:
    """Build the sample study: every expert mask as a reference, the start set's accepted as labels too.

    References are never trained on. The study can be edited freely; the bundle is not touched.
    """
    import_study(_FOLDER / "study", into, masks="reference", splits=sample_splits())
    store = LabelStore(into)
    if accept_start_set:
        accept_references(store, START_SET)
    return store


def accept_references(store: LabelStore, image_names: tuple[str, ...] | list[str]) -> list[str]:
    """Accept the expert masks of some bundled images, as imported labels; returns their case ids."""
    from amvlm.store.names import original_names

    wanted = {case_id for case_id, name in original_names(store.store_id).items() if name in image_names}
    for case_id, structure in sorted(store.references()):
        mask = store.read_reference(store.case(case_id), structure) if case_id in wanted else None
        if mask is not None:
            store.accept(case_id, structure, mask, source="imported")
    return sorted(wanted)
