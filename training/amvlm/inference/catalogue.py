"""Which models there are: the study's own, and the bundled one."""

from __future__ import annotations

from pathlib import Path

from amvlm.errors import UserError
from amvlm.sample import bundled_model_folder
from amvlm.store import LabelStore

BUNDLED = "bundled"

__all__ = ["BUNDLED", "available_models", "bundled_model_folder", "find_model"]


def available_models(store: LabelStore | None) -> dict[str, Path]:
    """Name → folder: the study's models, newest first, then the bundled one."""
    found: dict[str, Path] = {}
    if store is not None and (store.folder / "models").is_dir():
        cards = [path for path in (store.folder / "models").glob("*/card.json") if not path.parent.name.startswith(".")]
        found = {path.parent.name: path.parent for path in sorted(cards, key=lambda p: -p.stat().st_mtime_ns)}
    bundled = bundled_model_folder()
    return {**found, BUNDLED: bundled} if (bundled / "card.json").is_file() else found


def find_model(name: str, store: LabelStore | None = None) -> Path:
    """A model by its name in the study, "bundled" (or that model's own name), or a folder; "" is the newest.

    Raises
    ------
    UserError
        If there is none.
    """
    from amvlm.models.bundle import read_card

    models = available_models(store)
    if not name and models:
        return next(iter(models.values()))
    if name in models:
        return models[name]
    if name and (Path(name) / "card.json").is_file():
        return Path(name)
    if BUNDLED in models and name == read_card(models[BUNDLED]).name:
        return models[BUNDLED]
    if not name:
        raise UserError("there is no model yet", remedy="Make one with: amvlm pretrain STUDY, then amvlm train STUDY")
    raise UserError(f"there is no model {Path(name).name!r}", remedy=f"There are: {', '.join(models) or 'none'}.")


def model_in_use(store: LabelStore) -> Path | None:
    """The study's newest *trained* model: what a new one is compared with."""
    from amvlm.models.bundle import read_card

    own = {name: folder for name, folder in available_models(store).items() if name != BUNDLED}
    return next((folder for folder in own.values() if read_card(folder).kind == "trained"), None)


def base_model(store: LabelStore, name: str = "") -> Path:
    """Where a training run starts: the named model, else the newest *pre-trained* one, else the bundled one.

    A retrain never starts from the last retrain: that drifts.
    """
    from amvlm.models.bundle import read_card

    if name:
        return find_model(name, store)
    models = available_models(store)
    for folder in models.values():
        if read_card(folder).kind == "pretrained":
            return folder
    return find_model(BUNDLED if BUNDLED in models else "", store)
