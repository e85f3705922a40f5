"""Which models there are: the study's own, and the bundled one. A damaged one is passed over, and named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from amvlm.errors import UserError
from amvlm.paths import check_name
from amvlm.sample import bundled_model_folder
from amvlm.store import LabelStore
from amvlm.store.folders import is_folder, standing_models
from amvlm.store.memory import recall

BUNDLED = "bundled"

__all__ = [
    "BUNDLED",
    "Catalogue",
    "available_models",
    "base_model",
    "bundled_model_folder",
    "damaged_models",
    "find_model",
    "model_in_use",
]


@dataclass(frozen=True)
class Catalogue:
    """The models with a readable card, by name, and why the others are not among them."""

    folders: dict[str, Path]
    kinds: dict[str, str]
    damaged: dict[str, str]

    @classmethod
    def of(cls, store: LabelStore | None) -> Catalogue:
        """Read every card: the study's models, newest first, then the bundled one."""
        from amvlm.models.bundle import read_card

        named = _in_study(store) if store is not None else {}
        if is_folder(bundled_model_folder()):
            named[BUNDLED] = bundled_model_folder()
        folders: dict[str, Path] = {}
        kinds: dict[str, str] = {}
        damaged: dict[str, str] = {}
        for name, folder in named.items():
            try:
                kinds[name] = read_card(folder).kind
                folders[name] = folder
            except UserError as error:
                damaged[name] = f"the model {name} is passed over: {error.what}"
        return cls(folders, kinds, damaged)


def _in_study(store: LabelStore) -> dict[str, Path]:
    found = {}
    for name, folder in standing_models(store.folder / "models").items():
        try:
            found[check_name(name)] = folder
        except UserError:
            continue  # no name that amvlm gives
    return dict(sorted(found.items(), key=lambda item: -_saved(item[1])))


def _saved(folder: Path) -> int:
    """When a model was saved, ns; 0 where it has no card."""
    try:
        return (folder / "card.json").lstat().st_mtime_ns
    except OSError:
        return 0


def available_models(store: LabelStore | None) -> dict[str, Path]:
    """Name → folder of the models with a readable card: the study's, newest first, then the bundled one."""
    return Catalogue.of(store).folders


def damaged_models(store: LabelStore | None) -> dict[str, str]:
    """Name → a sentence, for every model that :func:`available_models` passes over."""
    return Catalogue.of(store).damaged


def find_model(name: str, store: LabelStore | None = None, folders: bool = True) -> Path:
    """A model by its name in the study, "bundled" (or that model's own name), or a folder; "" is the newest.

    Parameters
    ----------
    name : str
    store : LabelStore, optional
    folders : bool
        Whether the name may be a folder's: a person's may, one from a file may not.

    Raises
    ------
    UserError
        If there is none.
    """
    from amvlm.models.bundle import read_card

    known = Catalogue.of(store)
    models = known.folders
    if not name and models:
        return next(iter(models.values()))
    if name in models:
        return models[name]
    if name in known.damaged and name != BUNDLED:
        raise UserError(known.damaged[name], remedy="Copy it again, or choose another.")
    if folders and name and _is_model(name):
        return Path(name)
    if BUNDLED in models and name == read_card(models[BUNDLED]).name:
        return models[BUNDLED]
    if not name:
        raise UserError("there is no model yet", remedy="Make one with: amvlm pretrain STUDY, then amvlm train STUDY")
    raise UserError(f"there is no model {Path(name).name!r}", remedy=f"There are: {', '.join(models) or 'none'}.")


def _is_model(name: str) -> bool:
    try:
        return (Path(name) / "card.json").is_file()
    except (OSError, ValueError):  # too long, or an embedded NUL
        return False


def model_in_use(store: LabelStore) -> Path | None:
    """The trained model that this user chose, else the newest trained one: what a new one is compared with."""
    known = Catalogue.of(store)
    if known.kinds.get(chosen := recall(store.store_id).model) == "trained" and chosen != BUNDLED:
        return known.folders[chosen]
    return next((f for name, f in known.folders.items() if name != BUNDLED and known.kinds[name] == "trained"), None)


def base_model(store: LabelStore, name: str = "", folders: bool = True) -> Path:
    """Where a training run starts: the named model, else the newest *pre-trained* one, else the bundled one.

    A retrain never starts from the last retrain: that drifts.
    """
    if name:
        return find_model(name, store, folders)
    known = Catalogue.of(store)
    first = next((f for name, f in known.folders.items() if known.kinds[name] == "pretrained"), None)
    return first or find_model(BUNDLED if BUNDLED in known.folders else "", store)
