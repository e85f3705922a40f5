"""Wires panels to worker, layers and store. One controller for each viewer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import QObject, QTimer

from amvlm.errors import UserError
from amvlm.store import LabelStore
from amvlm.store.names import original_names
from napari_amvlm.correcting import Correcting
from napari_amvlm.engine import Engine, OpenCase
from napari_amvlm.jobs import Job, Worker
from napari_amvlm.judging import Judging
from napari_amvlm.keys import FURTHER_KEYS, KEYS
from napari_amvlm.layers import LABEL, CaseLayers
from napari_amvlm.panels.parts import show_table
from napari_amvlm.prompting import Prompting
from napari_amvlm.reviewing import Reviewing
from napari_amvlm.structures import Structures
from napari_amvlm.studies import Studies
from napari_amvlm.training_controller import TrainingController
from napari_amvlm.viewing import Viewing
from napari_amvlm.your_label import YourLabel

if TYPE_CHECKING:
    import napari

    from napari_amvlm.panels.prompt import PromptPanel
    from napari_amvlm.panels.review import ReviewPanel
    from napari_amvlm.panels.train import TrainPanel


class Controller(QObject):
    """The state of one viewer: study, open scan, model, and what runs for them."""

    _of: ClassVar[weakref.WeakKeyDictionary[Any, Controller]] = weakref.WeakKeyDictionary()

    @classmethod
    def of(cls, viewer: napari.viewer.Viewer) -> Controller:
        """The viewer's controller, made at the first call."""
        model = getattr(viewer, "__wrapped__", viewer)  # napari hands plugins a proxy
        if model not in cls._of:
            cls._of[model] = cls(model)
        return cls._of[model]

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)  # the viewer owns us, not the other way round
        self.worker = Worker()
        self.engine = Engine()
        self.store: LabelStore | None = None
        self.layers: CaseLayers | None = None
        self.structure = ""
        self.panel: PromptPanel | None = None
        self.is_side_by_side = True
        self._offered: Callable[[], None] = lambda: None
        self.studies = Studies(self)
        self.structures = Structures(self)
        self.viewing = Viewing(self)
        self.prompting = Prompting(self)
        self.label = YourLabel(self)
        self.correcting = Correcting(self)
        self.judging = Judging(self)
        self.training = TrainingController(self)
        self.reviewing = Reviewing(self)
        for key in KEYS:
            viewer.bind_key(key, self._key(key), overwrite=True)
        window = getattr(viewer.window, "_qt_window", None)
        if window is not None:
            window.destroyed.connect(self.close)
            window.installEventFilter(self)

    @property
    def viewer(self) -> napari.viewer.Viewer:
        """The viewer that this controller belongs to."""
        viewer = self._viewer()
        if viewer is None:
            raise RuntimeError("the viewer is gone")
        return viewer

    def _key(self, key: str) -> Callable[[Any], None]:
        words, action = KEYS[key]

        def pressed(_: Any) -> None:
            action(self)

        pressed.__doc__ = words
        return pressed

    def eventFilter(self, watched: Any, event: Any) -> bool:  # noqa: N802
        """Closing the window ends what runs for it within two seconds."""
        if event.type() == event.Type.Close and event.isAccepted():
            QTimer.singleShot(0, self._close_with_window)
        return False

    def _close_with_window(self) -> None:
        """After the window had its say: it may have refused to close."""
        viewer = self._viewer()
        window = getattr(viewer.window, "_qt_window", None) if viewer is not None else None
        if window is None or not window.isVisible():
            self.close()

    def close(self) -> None:
        """Save unsaved work, end the worker; a training run goes on."""
        if self.worker.closed:
            return
        self.training.close()
        self.correcting.stop()
        self.label.close()
        self.worker.close()
        self.engine.close()
        self.layers = self.panel = None

    # -- panels -----------------------------------------------------------------------------------------------

    def attach_prompt_panel(self, panel: PromptPanel) -> None:
        """Connect a panel's signals; the newest panel is the one that is shown to."""
        self.panel = panel
        panel.open_scan_requested.connect(self.studies.ask_for_scan)
        panel.open_folder_requested.connect(self.studies.ask_for_dicom_folder)
        panel.open_study_requested.connect(self.studies.ask_for_study)
        panel.new_study_requested.connect(self.studies.ask_for_new_study)
        panel.add_scans_requested.connect(self.studies.ask_for_more_scans)
        panel.export_requested.connect(self.studies.ask_for_export)
        panel.sample_requested.connect(self.studies.open_sample)
        panel.case_chosen.connect(self.open_case)
        panel.structure_chosen.connect(self.structures.choose)
        panel.new_structure_requested.connect(self.studies.ask_for_structure)
        panel.prompt_submitted.connect(self.prompting.run)
        panel.cancel_requested.connect(self.prompting.cancel)
        panel.model_chosen.connect(self.prompting.choose_model)
        panel.threshold_changed.connect(self.prompting.apply_threshold)
        panel.threshold_released.connect(self.label.follow)
        panel.plane_chosen.connect(self.viewing.show_plane)
        panel.window_chosen.connect(self.viewing.show_window)
        panel.copy_brush_chosen.connect(self.correcting.use_copy_brush)
        panel.correction_requested.connect(self.correcting.apply)
        panel.offer_taken.connect(self._take_offer)
        panel.keys_requested.connect(self.show_keys)
        panel.start_requested.connect(self.label.start_from)
        panel.view_chosen.connect(self.show_side_by_side)
        panel.accepted.connect(self.judging.accept)
        panel.absent_marked.connect(self.judging.mark_absent)
        panel.skipped.connect(self.judging.skip)
        panel.label_undone.connect(self.judging.undo)
        panel.show_idle()
        self.refresh_lists()

    def attach_review_panel(self, panel: ReviewPanel) -> None:
        self.reviewing.attach(panel)

    def attach_train_panel(self, panel: TrainPanel) -> None:
        self.training.attach(panel)

    def notice(self, text: str, warning: bool = False) -> None:
        if self.panel is not None:
            self.panel.show_notice(text, warning)

    def offer(self, text: str, action: str, tip: str, then: Callable[[], None]) -> None:
        """Offer something on a button of the panel; only the newest offer stands."""
        self._offered = then
        if self.panel is not None:
            self.panel.show_offer(text, action, tip)

    def _take_offer(self) -> None:
        self._offered()

    def fail(self, text: str) -> None:
        self.judging.failed()
        if self.panel is not None:
            self.panel.show_idle()
            self.panel.enable_judging(True)
        self.notice(text, warning=True)
        show_error(text)

    def guard(self, call: Callable[[], Any]) -> Any:
        """Run a quick store call; what a person can mend becomes a notification."""
        try:
            return call()
        except UserError as error:
            self.fail(str(error))
            return None

    # -- cases ------------------------------------------------------------------------------------------------

    def open_case(self, case_id: str) -> None:
        """Open a case of the study; unsaved work of the one before is kept as a draft."""
        if self.store is None:
            return
        store, structure = self.store, self.structure
        title = original_names(store.store_id).get(case_id, case_id)
        self.leave_case()
        self.submit(
            lambda: self.engine.open_case(store, case_id, structure, title), on_result=self.show_case, text="Opening …"
        )

    def show_case(self, opened: OpenCase) -> None:
        """Put an opened scan on screen in the place of the one before."""
        before = self.layers
        self.leave_case()
        if opened.case is None:
            self.store = None
            self.training.study_changed()
            self.reviewing.study_changed()
        if self.viewer.dims.ndisplay == 3:
            self.viewer.dims.ndisplay = 2
        self.correcting.stop()
        self.layers = CaseLayers(self.viewer, opened, before, self.threshold)
        self.label.begin(opened.label)
        self.label.watch(self.layers.labels[LABEL])
        self.layers.side_by_side(self.is_side_by_side)
        middle = [n // 2 for n in opened.ras.shape[:3]][::-1]
        for axis, index in enumerate(middle):
            self.viewer.dims.set_current_step(axis, index)
        self.viewing.opened()
        if self.layers.others:
            self.draw_outlines()
        if self.panel is not None:
            self.panel.show_open(in_study=opened.case is not None)
            self.panel.show_idle()
        sentences = opened.notes
        if opened.case is None:
            sentences = [*sentences, "This scan is in no study: make one to keep labels."]
        self.notice("\n".join(sentences), bool(opened.notes))
        if opened.draft:
            self.label.offer_to_discard()
        self.refresh_lists()
        self.reviewing.case_opened()
        self.label.measure_soon()

    def leave_case(self) -> None:
        """Jobs of the open scan end; unsaved work is kept."""
        if self.layers is None:
            return
        self.label.save_now()
        self.worker.cancel_owned_by(self.layers.opened)

    def next_case(self) -> None:
        case_id = self.reviewing.next_to_judge()
        if case_id is None:
            show_info("Every case is judged for this structure.")
        else:
            self.open_case(case_id)

    def refresh_lists(self) -> None:
        """Cases, structures and models, as they are now."""
        store = self.store

        self.prompting.list_models()
        if self.panel is None or store is None:
            return
        names, states = original_names(store.store_id), store.states()
        marks = {"accepted": "✓", "absent": "∅", "skipped": "↷", "rejected": "✕", "draft": "✎"}
        rows = []
        for case in store.cases():
            mark = marks.get(states.get((case.case_id, self.structure), ""), "·")
            rows.append((case.case_id, f"{mark}  {names.get(case.case_id, case.case_id)}  ({case.split})"))
        judged = sum(states.get((case_id, self.structure)) in ("accepted", "absent") for case_id, _ in rows)
        case = self.layers.opened.case if self.layers is not None else None
        self.panel.show_cases(rows, case.case_id if case else "", judged)
        structures = store.structures()
        self.panel.show_structures([s.name for s in structures], self.structure)
        self.panel.suggest_prompt({s.name: s.prompt for s in structures}, self.structure)
        self.prompting.offer_completions()
        self.reviewing.refresh()
        self.show_state()

    def show_state(self) -> None:
        case = self.layers.opened.case if self.layers is not None else None
        if self.panel is None or self.store is None or case is None:
            return
        state = self.store.state(case.case_id, self.structure)
        sentences = {
            "unknown": f"{self.structure}: not judged yet.",
            "draft": f"{self.structure}: work in progress, saved as a draft.",
            "accepted": f"{self.structure}: accepted.",
            "absent": f"{self.structure}: marked absent.",
            "rejected": f"{self.structure}: rejected.",
            "skipped": f"{self.structure}: skipped.",
        }
        test = " This case is kept for testing and never trained on." if case.split == "test" else ""
        self.panel.show_state(sentences[state] + test)

    # -- the view ---------------------------------------------------------------------------------------------

    @property
    def open_case_id(self) -> str:
        """The id of the case on screen, or ""."""
        case = self.layers.opened.case if self.layers is not None else None
        return case.case_id if case is not None else ""

    @property
    def threshold(self) -> float:
        """Probability from which a voxel belongs to a mask."""
        return float(self.panel.threshold.value()) if self.panel is not None else 0.5

    def draw_outlines(self) -> None:
        """Other structures and disagreement, drawn anew in the worker."""
        layers = self.layers
        if layers is None or not layers.present():
            return
        layers.colour_outlines()

        def done(whole: bool) -> None:
            if whole and self.layers is layers and layers.present():
                layers.refresh()

        self.worker.submit(Job(layers.outline_everywhere, owner=layers.opened, on_end=done))

    def show_side_by_side(self, on: bool) -> None:
        self.is_side_by_side = on
        self.viewing.masks_shown = True
        if self.layers is not None and self.viewer.dims.ndisplay == 2:
            self.layers.side_by_side(on)

    def toggle_view(self) -> None:
        self.show_side_by_side(not self.is_side_by_side)

    def show_keys(self) -> Any:
        """List every key and mouse gesture of ours in one window."""
        ours = {key: words.removeprefix("AMVLM: ") for key, (words, _) in KEYS.items()}
        window = getattr(self.viewer.window, "_qt_window", None)
        return show_table("Keys and mouse", {**ours, **FURTHER_KEYS}, window)

    def submit(self, work: Any, *, on_result: Any, text: str, owner: object = None, on_choice: Any = None) -> None:
        """Run something in the worker, with a bar that says what."""
        if self.panel is not None:
            self.panel.show_progress(0, 0, text)

        def ended(_: bool) -> None:
            if self.panel is not None and not self.worker.busy:
                self.panel.show_idle()

        self.worker.submit(
            Job(work, owner=owner, on_result=on_result, on_end=ended, on_error=self.fail, on_choice=on_choice)
        )

    def warn(self, text: str) -> None:
        show_warning(text)
