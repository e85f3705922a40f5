"""Wires panels to worker, layers and store. One controller for each viewer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import QObject, QTimer

from amvlm.store import LabelStore
from amvlm.store.names import original_names
from napari_amvlm import wording
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
        self.case_asked_for = ""
        self.panel: PromptPanel | None = None
        self._failure = ""
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
            self.guard(lambda: action(self))

        pressed.__doc__ = words
        return pressed

    def eventFilter(self, watched: Any, event: Any) -> bool:  # noqa: N802
        """Closing the window ends what runs for it within two seconds; strokes without a structure get a name first."""
        if event.type() == event.Type.Close and event.isAccepted():
            if watched.isVisible():
                self.guard(lambda: self.label.nameless and self.label.unsaved.ask())
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
        wires = (
            (panel.open_scan_requested, self.studies.ask_for_scan),
            (panel.open_folder_requested, self.studies.ask_for_dicom_folder),
            (panel.open_study_requested, self.studies.ask_for_study),
            (panel.new_study_requested, self.studies.ask_for_new_study),
            (panel.add_scans_requested, self.studies.ask_for_more_scans),
            (panel.export_requested, self.studies.ask_for_export),
            (panel.sample_requested, self.studies.open_sample),
            (panel.case_chosen, self.open_case),
            (panel.structure_chosen, self.structures.choose),
            (panel.new_structure_requested, self.studies.ask_for_structure),
            (panel.prompt_submitted, self.prompting.run),
            (panel.cancel_requested, self.prompting.cancel),
            (panel.model_chosen, self.prompting.choose_model),
            (panel.threshold_changed, self.prompting.apply_threshold),
            (panel.threshold_released, self.label.follow),
            (panel.plane_chosen, self.viewing.show_plane),
            (panel.window_chosen, self.viewing.show_window),
            (panel.copy_brush_chosen, self.correcting.use_copy_brush),
            (panel.correction_requested, self.correcting.apply),
            (panel.offer_taken, self._take_offer),
            (panel.keys_requested, self.show_keys),
            (panel.start_requested, self.label.start_from),
            (panel.view_chosen, self.show_side_by_side),
            (panel.accepted, self.judging.accept),
            (panel.absent_marked, self.judging.mark_absent),
            (panel.skipped, self.judging.skip),
            (panel.label_undone, self.judging.undo),
        )
        for signal, method in wires:
            signal.connect(self.slot(method))
        panel.show_idle()
        self.refresh_lists()

    def attach_review_panel(self, panel: ReviewPanel) -> None:
        self.reviewing.attach(panel)

    def attach_train_panel(self, panel: TrainPanel) -> None:
        self.training.attach(panel)

    def notice(self, text: str, warning: bool = False) -> None:
        self._failure = ""
        if self.panel is not None:
            self.panel.show_notice(text, warning)

    def offer(self, text: str, action: str, tip: str, then: Callable[[], None]) -> None:
        """Offer something on a button of the panel; only the newest offer stands."""
        self._offered = then
        if self.panel is not None:
            self.panel.show_offer(text, action, tip)

    def _take_offer(self) -> None:
        self._offered()

    def fail(self, text: str, once: bool = False) -> None:
        """Say what went wrong; what runs by itself says the same thing ``once``, until something else was said."""
        if once and text == self._failure:
            return
        self.judging.failed()
        if self.panel is not None:
            self.panel.show_idle()
            self.panel.enable_judging(True)
        self.notice(text, warning=True)
        self._failure = text
        show_error(wording.unmarked(text))

    def guard(self, call: Callable[[], Any], once: bool = False) -> Any:
        """Run what a person or a timer asked for; an error becomes a sentence, and None is returned."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - every action ends here: no traceback reaches a person
            text = wording.sentence(error)
            if not self.worker.closed:
                self.fail(text, once)
            return None

    def slot(self, method: Callable[..., Any], once: bool = False) -> Callable[..., None]:
        """A method as something for a signal or a timer to call; see :meth:`guard`."""

        def called(*values: Any) -> None:
            self.guard(lambda: method(*values), once)

        return called

    # -- cases ------------------------------------------------------------------------------------------------

    def open_case(self, case_id: str) -> None:
        """Open a case of the study; unsaved work of the one before is kept as a draft."""
        if self.store is None:
            return
        self.case_asked_for = case_id
        self.leave_case()
        store, structure = self.store, self.structure  # leaving may have named it
        title = self.titles().get(case_id, case_id)
        self.submit(
            lambda: self.engine.open_case(store, case_id, structure, title), on_result=self.show_case, text="Opening …"
        )

    def titles(self) -> dict[str, str]:
        """Case id → the name of the file that the case came from, where this machine knows it."""
        names = original_names(self.store.store_id) if self.store is not None else {}
        return {case_id: wording.printable(name) for case_id, name in names.items()}

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
        self.case_asked_for = self.open_case_id
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
        if not self.label.put_back() and opened.draft:
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
            self.tell("Every case is judged for this structure.")
        else:
            self.open_case(case_id)

    def refresh_lists(self) -> None:
        """Cases, structures and models, as they are now."""
        self.guard(self._refresh_lists, once=True)

    def _refresh_lists(self) -> None:
        store = self.store
        self.prompting.list_models()
        if self.panel is None or store is None:
            return
        names, states = self.titles(), store.states()
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
        self.guard(self._show_state, once=True)

    def _show_state(self) -> None:
        case = self.layers.opened.case if self.layers is not None else None
        if self.panel is None or self.store is None or case is None:
            return
        test = " This case is kept for testing and never trained on." if case.split == "test" else ""
        structure = wording.printable(self.structure)
        if not structure:
            self.panel.show_state(f"This study has no structure yet: name the first one with New….{test}")
            return
        state = self.store.state(case.case_id, self.structure)
        sentences = {
            "unknown": f"{structure}: not judged yet.",
            "draft": f"{structure}: work in progress, saved as a draft.",
            "accepted": f"{structure}: accepted.",
            "absent": f"{structure}: marked absent.",
            "rejected": f"{structure}: rejected.",
            "skipped": f"{structure}: skipped.",
        }
        self.panel.show_state(sentences.get(state, f"{structure}: {state}.") + test)

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
        return show_table("Keys and mouse", {**ours, **FURTHER_KEYS}, self.window)

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

    def tell(self, text: str) -> None:
        show_info(wording.unmarked(text))

    def warn(self, text: str) -> None:
        show_warning(wording.unmarked(text))

    @property
    def window(self) -> Any:
        """The main window, as the parent of another; None without one."""
        return getattr(self.viewer.window, "_qt_window", None)
