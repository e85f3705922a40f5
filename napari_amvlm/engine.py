"""What runs inside the worker: models, sessions, files. Nothing here touches Qt or napari."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError, printable
from amvlm.imaging import Volume, obliquity_deg, read_volume, to_canonical, to_display, to_original
from amvlm.store import Case, LabelStore, Revision
from napari_amvlm.undoing import Judgement

if TYPE_CHECKING:
    from amvlm.inference import Session
    from amvlm.inference.boxes import BoxReader
    from amvlm.inference.session import SliceResult
    from amvlm.models.lite_medsam import LiteMedSam

Mask = NDArray[np.uint8]
BOX_WEIGHTS = "litemedsam"


@dataclass(frozen=True)
class OpenCase:
    """A scan ready to show: ``ras`` is its canonical array; ``case`` is None outside a study.

    ``others`` are the accepted masks of the scan's other structures (canonical), ``colours`` those of all structures,
    ``reports`` what the study's captions say of the scan.
    """

    volume: Volume
    ras: NDArray[Any]
    spacing_mm: tuple[float, float, float]
    title: str
    case: Case | None
    label: Mask | None
    draft: bool
    others: dict[str, Mask]
    colours: dict[str, str]
    problems: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What the person should know about this scan before looking at sides and lengths."""
        found = [*self.problems, *self.volume.notes]
        if not self.volume.sides_known and not any("left" in note for note in found):
            found.append("The file does not say which side is the patient's left: check sides yourself.")
        tilt = obliquity_deg(self.volume)
        if tilt > 2:
            found.append(f"The scan is oblique by {tilt:.0f}°: planes and letters follow its nearest axes.")
        return found


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


@dataclass(frozen=True)
class MissingWeights:
    """Published weights that a model needs and that are not on this machine."""

    name: str
    title: str
    megabytes: float
    licence: str
    use: str = "This model reads words with"
    lack: str = "Without it this model reads no words."

    @property
    def question(self) -> str:
        return f"{self.use} {self.title} ({self.megabytes:.0f} MB, {self.licence}). Download it once?"

    @property
    def without(self) -> str:
        return f"{self.lack} Later: amvlm weights fetch {self.name}"


Box = tuple[int, int, int, int]
"""First row and column, last row and column, of a slice in canonical order."""


@dataclass(frozen=True)
class BoxMask:
    """What a box gave on one slice: (rows, columns), {0, 1}; and what speaks against it, on the box's own slice."""

    index: int
    mask: Mask
    doubt: str


@dataclass(frozen=True)
class PromptBegan:
    """How a prompt was read, before its masks come.

    Parameters
    ----------
    warnings : tuple of str
        What to know about the words, the scan or the model.
    axis : int
        The canonical axis that the slices lie along.
    predicts : bool
        Whether there is a prediction beside the text mask.
    fingerprint : str
        Of the model.
    """

    warnings: tuple[str, ...]
    axis: int
    predicts: bool
    fingerprint: str


@dataclass(frozen=True)
class PromptEnded:
    """What speaks against a prompt's masks, "" where nothing does; and whether one may become a label."""

    doubt: str
    trusted: bool = True


class Engine:
    """Keeps the loaded model and the session of the open scan."""

    def __init__(self) -> None:
        self._settled = self._closed = False
        self._model_folder: Path | None = None
        self._model: Any = None
        self._session: Session | None = None
        self._session_key: tuple[Path, int] | None = None
        self._box_network: LiteMedSam | None = None
        self._boxes: BoxReader | None = None
        self._boxes_key: tuple[int, int, tuple[float, float] | None] | None = None

    def models(self, store: LabelStore | None) -> Iterator[tuple[list[ModelEntry], list[str]]]:
        """List the models, and a sentence for each that cannot be read; the first call imports the library."""
        from amvlm.inference.catalogue import Catalogue
        from amvlm.models.bundle import read_card

        self._settle_garbage()
        catalogue = Catalogue.of(store)
        entries = []
        for name, folder in catalogue.folders.items():
            known = tuple(structure.name for structure in read_card(folder).structures)
            entries.append(ModelEntry(name, folder, catalogue.kinds[name], known))
        yield entries, [f"{reason[:1].upper()}{reason[1:]}." for reason in catalogue.damaged.values()]

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

    def open_scan(self, path: Path, volume_index: int | None = None, series: int | None = None) -> Iterator[OpenCase]:
        """Read a scan that is in no study; raises ``ChoiceNeeded`` where somebody has to say which."""
        self._session = self._session_key = None  # the scan before goes, before another takes its memory
        self._boxes = self._boxes_key = None
        volume = read_volume(path, volume_index, series)
        yield _opened(volume, printable(path.name), None, None, False, {}, {})

    def open_case(self, store: LabelStore, case_id: str, structure: str, title: str) -> Iterator[OpenCase]:
        """Read a case of a study with its current label, and unsaved work on top of it."""
        self._session = self._session_key = None
        self._boxes = self._boxes_key = self._box_network = None
        case = store.case(case_id)
        volume = store.read_image(case)
        problems: list[str] = []
        label, draft = None, False
        try:
            label, draft = self._label(store, case, structure, volume)
        except UserError as error:  # the scan can be looked at, and outlined again
            problems.append(f"The label of {printable(structure)} cannot be shown: {error}")
        others = {}
        for r in store.snapshot().revisions:
            if r.case_id == case_id and r.structure != structure and r.kind == "accepted":
                try:
                    others[r.structure] = _canonical(store.read_mask(r), volume)
                except UserError as error:
                    problems.append(f"The outline of {printable(r.structure)} cannot be shown: {error}")
        colours = {s.name: s.colour for s in store.structures()}
        reports = tuple(text for _, text in store.captions().get(case_id, []))
        yield replace(
            _opened(volume, title, case, label, draft, others, colours, tuple(problems)), reports=reports
        )

    def label_of(
        self, store: LabelStore, case: Case, structure: str, volume: Volume
    ) -> Iterator[tuple[Mask | None, bool]]:
        """The label of another structure of the open case (canonical array), and whether it is unsaved work."""
        label, draft = self._label(store, case, structure, volume)
        yield (None if label is None else _canonical(label, volume)), draft

    def _label(self, store: LabelStore, case: Case, structure: str, volume: Volume) -> tuple[Mask | None, bool]:
        revision = store.current(case.case_id, structure)
        label = store.read_mask(revision).copy(order="K") if revision is not None else None
        draft = store.load_draft(case.case_id, structure)
        if draft:
            label = np.zeros(volume.shape, np.uint8) if label is None else label
            for index, plane in draft.items():
                label[:, :, index] = plane
        return label, bool(draft)

    def segment(
        self, model: Path, volume: Volume, prompt: str, visible: tuple[int, ...]
    ) -> Iterator[PromptBegan | SliceResult | PromptEnded]:
        """Yield what to know before, then results, the visible slice (one index per canonical axis) first.

        A prompt that the model does not understand gives empty masks and a sentence, not a guess.
        """
        from amvlm.inference.sides import SideCheck

        session = self._open_session(model, volume)
        fingerprint, reading = self._model.fingerprint, self._model.card.read(prompt)
        if reading.refusal:
            learn = " Outline it in a few scans, then Train." if "not known here" in reading.refusal else ""
            yield PromptBegan((reading.refusal + learn,), session.axis, False, fingerprint)
            yield session.nothing()
            yield PromptEnded("", trusted=False)
            return
        words, predicts = reading.caption, session.prediction_of(reading.caption) is not None
        warnings = (*filter(None, [reading.note]), *session.warnings(words))
        yield PromptBegan(warnings, session.axis, predicts, fingerprint)
        sides = SideCheck.of(session, reading)
        for result in session.segment(words, visible[session.axis]):
            sides.see(result)
            yield result
        doubt = sides.sentence() or session.doubts(words)
        yield PromptEnded(doubt, trusted=not doubt and not session.unread(words))

    def _open_session(self, model: Path, volume: Volume) -> Session:
        from amvlm.inference import Session
        from amvlm.inference.evaluate import default_device

        self._loaded(model)
        key = (model, id(volume))
        if self._session is None or self._session_key != key:
            self._session, self._session_key = Session(self._model, volume, default_device()), key
        return self._session

    def missing_weights(self, model: Path) -> Iterator[MissingWeights | None]:
        """What a model needs that is not on this machine; yields once."""
        from amvlm.models.bundle import missing_weights

        found = missing_weights(model)
        yield None if found is None else MissingWeights(found.name, found.title, found.megabytes, found.licence)

    def fetch(self, name: str) -> Iterator[None]:
        """Download weights of the registry; yields once they are there."""
        from amvlm import weights

        weights.fetch(name, say=lambda _: None)
        yield None

    def missing_box_weights(self) -> Iterator[MissingWeights | None]:
        """LiteMedSAM, where it is not on this machine; yields once."""
        from amvlm import weights

        found = weights.known(BOX_WEIGHTS)
        try:
            weights.find(found.name)
        except weights.MissingWeightsError:
            yield MissingWeights(found.name, found.title, found.megabytes, found.licence,
                                 "The box tool needs", "Without it there is no box tool.")  # fmt: skip
        else:
            yield None

    def boxed(
        self, volume: Volume, axis: int, index: int, box: Box, window: tuple[float, float] | None, whole: bool
    ) -> Iterator[BoxMask]:
        """Yield the mask of the box's slice, and with ``whole`` of the neighbouring ones, from there outward."""
        from amvlm.inference.boxes import BoxReader
        from amvlm.inference.carrying import Box as Corners
        from amvlm.inference.carrying import doubt_of, largest_part
        from amvlm.models.lite_medsam import load_lite_medsam

        key = (id(volume), axis, window)
        if self._boxes is None or self._boxes_key != key:
            if self._box_network is None:
                self._box_network = load_lite_medsam()
            self._boxes, self._boxes_key = BoxReader(self._box_network, volume, axis, window), key
        corners = Corners(*box)
        found = self._boxes.structure(index, corners) if whole else iter([(index, self._boxes.mask(index, corners))])
        for place, mask in found:
            doubt = doubt_of(mask, corners) if place == index else ""
            yield BoxMask(place, largest_part(mask).astype(np.uint8), doubt)

    def _loaded(self, model: Path) -> Any:
        from amvlm.models import AmvlmModel

        if self._model_folder != model:
            self._model, self._model_folder = AmvlmModel.load(model), model
        return self._model

    def accept(
        self, store: LabelStore, case: Case, structure: str, label: Mask, volume: Volume, origin: dict[str, Any]
    ) -> Iterator[int]:
        """Keep a canonical label as a revision; yields its number once it cannot be lost."""
        stored = np.ascontiguousarray(to_original(label, volume))
        yield store.accept(case.case_id, structure, stored, **origin).revision_id

    def take_back(
        self, store: LabelStore, undone: Judgement, before: Revision | None, draft: dict[int, Mask]
    ) -> Iterator[bool]:
        """The mask of a judgement that was taken back is work in progress again, and what was painted on it since."""
        case = store.case(undone.case_id)
        slices: dict[int, Mask] = {}
        if before is not None and before.kind == "accepted" and store.current(case.case_id, undone.structure) is None:
            mask = store.read_mask(before)
            slices = {int(k): mask[:, :, k] for k in np.flatnonzero(mask.any(axis=(0, 1)))}
        if slices or draft:
            store.save_draft(case.case_id, undone.structure, {**slices, **draft})
        yield True

    def save_draft(self, store: LabelStore, case: Case, structure: str, label: Mask, volume: Volume) -> Iterator[bool]:
        """Autosave the slices that hold something or held something before."""
        stored = to_original(label, volume)
        try:
            held = set(store.load_draft(case.case_id, structure))
        except UserError:  # it cannot be read, and the whole label is here
            store.discard_draft(case.case_id, structure)
            held = set()
        touched = {int(k) for k in np.flatnonzero(stored.any(axis=(0, 1)))} | held
        store.save_draft(case.case_id, structure, {k: stored[:, :, k] for k in sorted(touched)})
        yield True

    def measure(self, text_mask: Any, prediction: Any, label: Any, voxel_ml: float) -> Iterator[Measures]:
        """Compare binary masks of one grid."""
        text_mask, prediction, label = (mask.view(np.bool_) for mask in (text_mask, prediction, label))
        sizes = [int(np.count_nonzero(mask)) for mask in (text_mask, prediction, label)]
        yield Measures(dice(text_mask, prediction), dice(text_mask, label), *(size * voxel_ml for size in sizes))

    def thumbnails(self, store: LabelStore, case_ids: list[str]) -> Iterator[tuple[str, int, int, bytes]]:
        """Case id, width, height and RGB bytes of each case's middle slice; a scan that cannot be read has none."""
        for case_id in case_ids:
            try:
                picture = _picture(store.read_image(store.case(case_id)), 44)
            except UserError:  # said when the case is opened
                continue
            yield case_id, *picture

    def assess(self, model: Path, store: LabelStore) -> Iterator[tuple[int, int]]:
        """Grade the pseudo-labels of every unjudged case but the test cases; closed early, what was graded is kept."""
        from amvlm.inference import assessing

        for split in ("train", "val"):
            yield from assessing(self._loaded(model), store, split)

    def revisions(self, store: LabelStore, chosen: list[Revision], volume: Volume) -> Iterator[list[Mask]]:
        """The masks of some revisions on the canonical grid."""
        yield [_canonical(store.read_mask(revision), volume) for revision in chosen]

    def edit(self, kind: str, label: Mask, axis: int, spacing_mm: tuple[float, float, float]) -> Iterator[Mask]:
        """A correction of the whole label; ``axis`` is the canonical axis across which the person looks."""
        from amvlm.imaging import editing

        if kind == "smooth":
            yield editing.smooth(label, spacing_mm)
        elif kind == "fill holes":
            yield editing.fill_holes(label, axis)
        elif kind == "largest part":
            yield editing.largest_component(label)
        elif kind == "interpolate":
            yield editing.interpolate(label, axis, spacing_mm)
        else:
            raise ValueError(kind)

    def call(self, function: Callable[[], Any]) -> Iterator[Any]:
        """Run any other slow library call here."""
        yield function()


def dice(a: Mask, b: Mask) -> float:
    """Dice of two binary masks; NaN when both are empty."""
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    both = sum(int(np.count_nonzero(a[:, :, z] & b[:, :, z])) for z in range(a.shape[2]))
    return 2 * both / total if total else float("nan")


def _picture(volume: Volume, size: int) -> tuple[int, int, bytes]:
    """The middle slice in radiological display as a small RGB picture: width, height, bytes."""
    canonical = to_canonical(volume)
    middle = to_display(canonical.array)[canonical.shape[2] // 2]
    spacing = canonical.spacing_mm
    extent = np.array([middle.shape[0] * spacing[1], middle.shape[1] * spacing[0]])
    rows, columns = (max(1, round(float(size * e / extent.max()))) for e in extent)
    places = [np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(middle.shape, (rows, columns), strict=False)]
    small = np.nan_to_num(middle[np.ix_(*places)].astype(np.float32), posinf=0, neginf=0)
    if small.ndim == 2:
        low, high = np.quantile(small, (0.01, 0.99))
        small = np.repeat((small - low)[..., None] / max(1e-6, high - low) * 255, 3, 2)
    return columns, rows, np.ascontiguousarray(small.clip(0, 255).astype(np.uint8)).tobytes()


def _canonical(label: Mask, volume: Volume) -> Mask:
    return np.asfortranarray(to_canonical(volume.with_array(label)).array)


def _opened(
    volume: Volume,
    title: str,
    case: Case | None,
    label: Mask | None,
    draft: bool,
    others: dict[str, Mask],
    colours: dict[str, str],
    problems: tuple[str, ...] = (),
) -> OpenCase:
    canonical = to_canonical(volume)
    spacing = canonical.spacing_mm
    return OpenCase(
        volume, canonical.array, (float(spacing[0]), float(spacing[1]), float(spacing[2])), title, case,
        None if label is None else _canonical(label, volume), draft, others, colours, problems,
    )  # fmt: skip
