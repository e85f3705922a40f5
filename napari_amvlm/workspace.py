"""The one owner of what the window is about: study, structure, open scan, model, threshold, and what it is busy with.

Fields are read-only; verbs change them and signals tell, in the past tense. It knows no panel and no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, Signal

from amvlm.store import LabelStore
from amvlm.store.memory import recall, remember, remember_study

if TYPE_CHECKING:
    from amvlm.store import Case
    from napari_amvlm.engine import ModelEntry
    from napari_amvlm.layers import CaseLayers
    from napari_amvlm.undoing import Judgement

THRESHOLD = 0.5


class Workspace(QObject):
    """The state of one viewer."""

    study_changed = Signal()
    """Another study is open, or none."""
    structure_chosen = Signal(str)
    scan_shown = Signal()
    """Another scan is on screen, or none."""
    models_listed = Signal()
    """The list of models or the chosen one changed."""
    busy_changed = Signal(int, int, str)
    """Done, of a total (0 where it is not known), and what is done; "" where nothing is waited for."""
    labels_changed = Signal()
    """A judgement was made, taken back or restored."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._store: LabelStore | None = None
        self._structure = ""
        self._layers: CaseLayers | None = None
        self._asked_for = ""
        self._models: tuple[ModelEntry, ...] = ()
        self._model: ModelEntry | None = None
        self._threshold = THRESHOLD
        self._side_by_side: bool | None = None
        self._prompts: dict[str, str] = {}
        self._judgements: list[Judgement] = []
        self._busy: object = None

    # -- fields -----------------------------------------------------------------------------------------------

    @property
    def store(self) -> LabelStore | None:
        """The open study."""
        return self._store

    @property
    def structure(self) -> str:
        """The structure that the label belongs to, "" where the study has none."""
        return self._structure

    @property
    def layers(self) -> CaseLayers | None:
        """The layers of the scan on screen."""
        return self._layers

    @property
    def case(self) -> Case | None:
        """The case on screen; None without one, and for a scan that is in no study."""
        return self._layers.opened.case if self._layers is not None else None

    @property
    def case_id(self) -> str:
        """The id of the case on screen, or ""."""
        return self.case.case_id if self.case is not None else ""

    @property
    def case_asked_for(self) -> str:
        """The case that was opened last, though it may not be on screen (yet)."""
        return self._asked_for

    @property
    def models(self) -> tuple[ModelEntry, ...]:
        """The models there are, the newest first."""
        return self._models

    @property
    def model(self) -> ModelEntry | None:
        """The model that reads prompts."""
        return self._model

    @property
    def threshold(self) -> float:
        """Probability from which a voxel belongs to a mask."""
        return self._threshold

    @property
    def side_by_side(self) -> bool | None:
        """Three views or one, as the person chose; None while nobody chose."""
        return self._side_by_side

    @property
    def judgements(self) -> Sequence[Judgement]:
        """What was judged in this study since it was opened, the newest last."""
        return tuple(self._judgements)

    @property
    def busy(self) -> bool:
        """Whether something is waited for."""
        return self._busy is not None

    def prompt_of(self, structure: str) -> str:
        """The words that were run last for a structure of this study, "" before the first."""
        return self._prompts.get(structure, "")

    # -- verbs ------------------------------------------------------------------------------------------------

    def open_study(self, store: LabelStore, structure: str) -> None:
        """Another study takes the place of the one before; its scans are not on screen yet."""
        self._store, self._structure, self._asked_for = store, structure, ""
        self._prompts.clear()
        self._judgements.clear()
        remember_study(store.folder)
        self.show(None)
        self.study_changed.emit()

    def leave_study(self) -> None:
        """No study is open any more."""
        self._store, self._structure, self._asked_for = None, "", ""
        self._prompts.clear()
        self._judgements.clear()
        self.study_changed.emit()

    def choose_structure(self, name: str) -> None:
        """The label belongs to this structure from now on."""
        self._structure = name
        if self._store is not None:
            remember(self._store.store_id, structure=name)
        self.structure_chosen.emit(name)

    def ask_for(self, case_id: str) -> None:
        """A case is being opened."""
        self._asked_for = case_id

    def show(self, layers: CaseLayers | None) -> None:
        """A scan is on screen, or none."""
        self._layers = layers
        self._asked_for = self.case_id or self._asked_for
        if self._store is not None and self.case_id:
            remember(self._store.store_id, case_id=self.case_id)
        self.scan_shown.emit()

    def list_models(self, models: Sequence[ModelEntry]) -> None:
        """The chosen model stays; else the one this study was used with, else the newest trained one, else any."""
        self._models = tuple(models)
        named = {model.name: model for model in models}
        last = recall(self._store.store_id).model if self._store is not None else ""
        newest = next((model for model in models if model.kind == "trained"), next(iter(models), None))
        chosen = self._model.name if self._model is not None else ""
        self._model = named.get(chosen if self._store is None else last or chosen, newest)
        self.models_listed.emit()

    def use(self, name: str) -> None:
        """Another model reads prompts; the study remembers it."""
        self._model = next((model for model in self._models if model.name == name), self._model)
        self.remember_model()
        self.models_listed.emit()

    def remember_model(self) -> None:
        """The model in use stays in use, whatever models come later."""
        if self._store is not None and self._model is not None:
            remember(self._store.store_id, model=self._model.name)

    def set_threshold(self, threshold: float) -> None:
        """Masks are cut at another probability."""
        self._threshold = threshold

    def set_side_by_side(self, on: bool) -> None:
        """The person wants three views, or one."""
        self._side_by_side = on

    def prompted(self, structure: str, prompt: str) -> None:
        """A prompt ran to its end for a structure."""
        self._prompts[structure] = prompt

    def judged(self, judgement: Judgement) -> None:
        """A case was judged for a structure."""
        self._judgements.append(judgement)

    def taken_back(self, judgement: Judgement) -> None:
        """A judgement does not stand any more."""
        if judgement in self._judgements:
            self._judgements.remove(judgement)

    def begin(self, what: str, token: object) -> None:
        """Something is waited for; ``token`` is told again when it ends."""
        self._busy = token
        self.busy_changed.emit(0, 0, what)

    def go_on(self, done: int, total: int, what: str, token: object) -> None:
        """How far it is; something newer that is waited for stays on show."""
        if self._busy is token:
            self.busy_changed.emit(done, total, what)

    def stop_waiting(self) -> None:
        """The person does not wait any longer."""
        self.end(self._busy)

    def end(self, token: object) -> None:
        """It has ended, one way or another."""
        if self._busy is token is not None:
            self._busy = None
            self.busy_changed.emit(0, 0, "")
