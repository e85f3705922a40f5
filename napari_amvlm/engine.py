"""What runs inside the worker: models, sessions, files. Nothing here touches Qt or napari."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from amvlm.imaging import Volume, read_volume, to_canonical, to_original
from amvlm.store import Case, LabelStore

if TYPE_CHECKING:
    from amvlm.inference import Session

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class OpenCase:
    """A scan ready to show: ``ras`` is its canonical array; ``case`` is None outside a study."""

    volume: Volume
    ras: NDArray[Any]
    spacing_mm: tuple[float, float, float]
    title: str
    case: Case | None
    label: Mask | None
    draft: bool


@dataclass(frozen=True)
class ModelEntry:
    """A line of the list of models."""

    name: str
    folder: Path
    kind: str
    known: tuple[str, ...]


@dataclass(frozen=True)
class Measures:
    """Dice between the masks (NaN when both are empty) and volumes in ml."""

    text_against_prediction: float
    label_against_text: float
    text_ml: float
    prediction_ml: float
    label_ml: float


class Engine:
    """Keeps the loaded model and the session of the open scan."""

    def __init__(self) -> None:
        self._settled = self._closed = False
        self._model_folder: Path | None = None
        self._model: Any = None
        self._session: Session | None = None
        self._session_key: tuple[Path, int] | None = None

    def models(self, store: LabelStore | None) -> Iterator[list[ModelEntry]]:
        """List the models; the first call imports the library."""
        from amvlm.inference import available_models
        from amvlm.models.bundle import read_card

        self._settle_garbage()
        entries = []
        for name, folder in available_models(store).items():
            card = read_card(folder)
            entries.append(ModelEntry(name, folder, card.kind, tuple(s.name for s in card.structures)))
        yield entries

    def _settle_garbage(self) -> None:
        """Take the loaded libraries out of the garbage collector's view, once.

        napari collects garbage at every layer it removes; with torch's million objects in view that takes 0.4 s
        each, and closing a case removes six layers.
        """
        if not self._settled and not self._closed:
            gc.collect()
            gc.freeze()
            self._settled = True

    def close(self) -> None:
        """Forget model and session; give the collector back what was set aside."""
        self._closed = True
        self._model = self._session = None
        if self._settled:
            gc.unfreeze()

    def open_scan(self, path: Path) -> Iterator[OpenCase]:
        """Read a scan that is in no study."""
        volume = read_volume(path)
        yield _opened(volume, path.name, None, None, False)

    def open_case(self, store: LabelStore, case_id: str, structure: str, title: str) -> Iterator[OpenCase]:
        """Read a case of a study with its current label, and unsaved work on top of it."""
        case = store.case(case_id)
        volume = store.read_image(case)
        label, draft = self._label(store, case, structure, volume)
        yield _opened(volume, title, case, label, draft)

    def label_of(
        self, store: LabelStore, case: Case, structure: str, volume: Volume
    ) -> Iterator[tuple[Mask | None, bool]]:
        """The label of another structure of the open case (canonical array), and whether it is unsaved work."""
        label, draft = self._label(store, case, structure, volume)
        yield (None if label is None else _canonical(label, volume)), draft

    def _label(self, store: LabelStore, case: Case, structure: str, volume: Volume) -> tuple[Mask | None, bool]:
        revision = store.current(case.case_id, structure)
        label = store.read_mask(revision).copy() if revision is not None else None
        draft = store.load_draft(case.case_id, structure)
        if draft:
            label = np.zeros(volume.shape, np.uint8) if label is None else label
            for index, plane in draft.items():
                label[:, :, index] = plane
        return label, bool(draft)

    def segment(self, model: Path, volume: Volume, prompt: str, visible: tuple[int, ...]) -> Iterator[Any]:
        """Yield the session's warnings, then its results, the visible slice (one index per canonical axis) first."""
        session = self._open_session(model, volume)
        yield session.warnings(prompt), session.axis, session.prediction_of(prompt) is not None, self._model.fingerprint
        yield from session.segment(prompt, visible[session.axis])

    def _open_session(self, model: Path, volume: Volume) -> Session:
        from amvlm.inference import Session
        from amvlm.inference.evaluate import default_device
        from amvlm.models import AmvlmModel

        if self._model_folder != model:
            self._model, self._model_folder = AmvlmModel.load(model), model
        key = (model, id(volume))
        if self._session is None or self._session_key != key:
            self._session, self._session_key = Session(self._model, volume, default_device()), key
        return self._session

    def accept(
        self, store: LabelStore, case: Case, structure: str, label: Mask, volume: Volume, origin: dict[str, Any]
    ) -> Iterator[int]:
        """Keep a canonical label as a revision; yields its number once it cannot be lost."""
        stored = np.ascontiguousarray(to_original(label, volume))
        yield store.accept(case.case_id, structure, stored, **origin).revision_id

    def save_draft(self, store: LabelStore, case: Case, structure: str, label: Mask, volume: Volume) -> Iterator[bool]:
        """Autosave the slices that hold something or held something before."""
        stored = to_original(label, volume)
        held = store.load_draft(case.case_id, structure)
        touched = {int(k) for k in np.flatnonzero(stored.any(axis=(0, 1)))} | set(held)
        store.save_draft(case.case_id, structure, {k: stored[:, :, k] for k in sorted(touched)})
        yield True

    def measure(self, text_mask: Mask, prediction: Mask, label: Mask, voxel_ml: float) -> Iterator[Measures]:
        """Compare binary masks of one grid."""
        sizes = [int(np.count_nonzero(mask)) for mask in (text_mask, prediction, label)]

        def dice(a: Mask, b: Mask, total: int) -> float:
            return 2 * int(np.count_nonzero(a & b)) / total if total else float("nan")

        yield Measures(
            dice(text_mask, prediction, sizes[0] + sizes[1]), dice(text_mask, label, sizes[0] + sizes[2]),
            *(size * voxel_ml for size in sizes),
        )  # fmt: skip

    def call(self, function: Callable[[], Any]) -> Iterator[Any]:
        """Run any other slow library call here."""
        yield function()


def _canonical(label: Mask, volume: Volume) -> Mask:
    return np.ascontiguousarray(to_canonical(volume.with_array(label)).array)


def _opened(volume: Volume, title: str, case: Case | None, label: Mask | None, draft: bool) -> OpenCase:
    canonical = to_canonical(volume)
    spacing = canonical.spacing_mm
    return OpenCase(
        volume, canonical.array, (float(spacing[0]), float(spacing[1]), float(spacing[2])), title, case,
        None if label is None else _canonical(label, volume), draft,
    )  # fmt: skip
