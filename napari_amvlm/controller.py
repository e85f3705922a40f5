"""Wires panels to worker, layers and store. One controller for each viewer."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import platformdirs
from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import QObject, QTimer
from qtpy.QtWidgets import QFileDialog, QInputDialog

from amvlm.errors import UserError
from amvlm.store import LabelStore
from amvlm.store.names import original_names
from napari_amvlm.engine import Engine, Measures, ModelEntry, OpenCase
from napari_amvlm.jobs import Job, Worker
from napari_amvlm.layers import LABEL, PREDICTION, TEXT_MASK, CaseLayers
from napari_amvlm.training_controller import TrainingController

if TYPE_CHECKING:
    import napari

    from napari_amvlm.panels.prompt import PromptPanel
    from napari_amvlm.panels.train import TrainPanel

AUTOSAVE_MS = 30_000
MEASURE_MS = 400
KEYS = {"A": "accept", "N": "mark_absent", "K": "skip", "U": "undo_label", "J": "next_case", "G": "toggle_view"}
_SOURCES = {"merged": "merged", TEXT_MASK: "text mask", PREDICTION: "prediction", "empty": "by hand"}


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
        self.models: list[ModelEntry] = []
        self.model: ModelEntry | None = None
        self.panel: PromptPanel | None = None
        self.training = TrainingController(self)
        self._judging = False
        self._side_by_side = True
        self._reset_label_state()
        self._measure_timer = self._timer(MEASURE_MS, self._measure, single=True)
        self._autosave_timer = self._timer(AUTOSAVE_MS, self.autosave)
        self._autosave_timer.start()
        for key, name in KEYS.items():
            viewer.bind_key(key, self._key(name), overwrite=True)
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

    def _timer(self, interval: int, call: Callable[[], None], single: bool = False) -> QTimer:
        timer = QTimer(self)
        timer.setInterval(interval)
        timer.setSingleShot(single)
        timer.timeout.connect(call)
        return timer

    def _key(self, name: str) -> Callable[[Any], None]:
        def pressed(_: Any) -> None:
            getattr(self, name)()

        pressed.__doc__ = {
            "accept": "AMVLM: accept your label",
            "mark_absent": "AMVLM: the structure is absent",
            "skip": "AMVLM: skip this case",
            "undo_label": "AMVLM: undo the last judgement",
            "next_case": "AMVLM: open the next unjudged case",
            "toggle_view": "AMVLM: side by side or stacked",
        }[name]
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
        self._autosave_timer.stop()
        self._measure_timer.stop()
        self.training.close()
        self._save_draft_now()
        self.worker.close()
        self.engine.close()
        self.layers = self.panel = None

    # -- panels -----------------------------------------------------------------------------------------------

    def attach_prompt_panel(self, panel: PromptPanel) -> None:
        """Connect a panel's signals; the newest panel is the one that is shown to."""
        self.panel = panel
        panel.open_scan_requested.connect(self.ask_for_scan)
        panel.open_study_requested.connect(self.ask_for_study)
        panel.new_study_requested.connect(self.ask_for_new_study)
        panel.add_scans_requested.connect(self.ask_for_more_scans)
        panel.export_requested.connect(self.ask_for_export)
        panel.sample_requested.connect(self.open_sample)
        panel.case_chosen.connect(self.open_case)
        panel.structure_chosen.connect(self.choose_structure)
        panel.new_structure_requested.connect(self.ask_for_structure)
        panel.prompt_submitted.connect(self.run_prompt)
        panel.cancel_requested.connect(self.cancel)
        panel.model_chosen.connect(self.choose_model)
        panel.threshold_changed.connect(self._apply_threshold)
        panel.threshold_released.connect(self._start_label_if_untouched)
        panel.start_requested.connect(self.start_label_from)
        panel.view_chosen.connect(self.show_side_by_side)
        panel.accepted.connect(self.accept)
        panel.absent_marked.connect(self.mark_absent)
        panel.skipped.connect(self.skip)
        panel.label_undone.connect(self.undo_label)
        panel.show_idle()
        self._refresh_lists()

    def attach_train_panel(self, panel: TrainPanel) -> None:
        self.training.attach(panel)

    def _notice(self, text: str, warning: bool = False) -> None:
        if self.panel is not None:
            self.panel.show_notice(text, warning)

    def _fail(self, text: str) -> None:
        self._judging = False
        if self.panel is not None:
            self.panel.show_idle()
            self.panel.enable_judging(True)
        self._notice(text, warning=True)
        show_error(text)

    def _guard(self, call: Callable[[], Any]) -> Any:
        """Run a quick store call; what a person can mend becomes a notification."""
        try:
            return call()
        except UserError as error:
            self._fail(str(error))
            return None

    # -- studies and scans ------------------------------------------------------------------------------------

    def ask_for_scan(self) -> None:
        name, _ = QFileDialog.getOpenFileName(
            None, "Open scan", "", "Scans (*.nii *.nii.gz *.png *.tif *.tiff *.webp *.jpg);;All files (*)"
        )
        if name:
            self.open_scan(Path(name))

    def ask_for_study(self) -> None:
        if name := QFileDialog.getExistingDirectory(None, "Open study"):
            self.open_study(Path(name))

    def ask_for_new_study(self) -> None:
        source = QFileDialog.getExistingDirectory(None, "Folder of scans")
        into = QFileDialog.getSaveFileName(None, "Name of the new study", "study")[0] if source else ""
        if into:
            self.import_scans(Path(source), Path(into))

    def ask_for_more_scans(self) -> None:
        source = QFileDialog.getExistingDirectory(None, "Folder of scans")
        if source and self.store is not None:
            self.import_scans(Path(source), self.store.folder)

    def ask_for_export(self) -> None:
        into = QFileDialog.getSaveFileName(None, "New folder for the labels", "labels")[0]
        if into and self.store is not None:
            self.export_labels(Path(into))

    def ask_for_structure(self) -> None:
        name, chosen = QInputDialog.getText(None, "New structure", "Name of the structure, for example: liver")
        if chosen and self.store is not None:
            self.add_structure(name)

    def open_scan(self, path: Path) -> None:
        """Show one scan that is in no study: prompts work, labels are not kept."""
        self._submit(lambda: self.engine.open_scan(path), on_result=self._show_case, text="Opening …")

    def open_study(self, folder: Path) -> None:
        """Open a study and its first unjudged case."""
        store = self._guard(lambda: LabelStore(folder))
        if store is None:
            return
        self.store = store
        names = [structure.name for structure in store.structures()]
        self.structure = self.structure if self.structure in names else (names[0] if names else "")
        self._refresh_lists()
        self.training.study_changed()
        cases = store.cases()
        if cases:
            self.open_case(self._next_unjudged() or cases[0].case_id)

    def open_sample(self) -> None:
        """Open the sample study on this user's own copy, made at the first call."""
        folder = Path(platformdirs.user_data_dir("napari-amvlm", appauthor=False)) / "sample-study"

        def prepare() -> Path:
            from amvlm.sample import copy_sample_study

            if not (folder / "store.sqlite").is_file():
                copy_sample_study(folder)
            return folder

        self._submit(lambda: self.engine.call(prepare), on_result=self.open_study, text="Preparing the sample …")

    def import_scans(self, source: Path, into: Path) -> None:
        """Copy a folder of scans into a study, new or old, and open it."""

        def work() -> str:
            from amvlm.exchange import import_study

            return import_study(source, into).sentence()

        def done(sentence: str) -> None:
            show_info(sentence)
            self.open_study(into)

        self._submit(lambda: self.engine.call(work), on_result=done, text="Importing …")

    def export_labels(self, into: Path) -> None:
        store = self.store

        def work() -> int:
            from amvlm.exchange import export_labels

            return export_labels(store, into) if store is not None else 0

        self._submit(
            lambda: self.engine.call(work),
            on_result=lambda n: show_info(f"{n} masks written to {into.name}."),
            text="Exporting …",
        )

    def open_case(self, case_id: str) -> None:
        """Open a case of the study; unsaved work of the one before is kept as a draft."""
        if self.store is None:
            return
        store, structure = self.store, self.structure
        title = original_names(store.store_id).get(case_id, case_id)
        self._leave_case()
        self._submit(
            lambda: self.engine.open_case(store, case_id, structure, title), on_result=self._show_case, text="Opening …"
        )

    def _show_case(self, opened: OpenCase) -> None:
        before = self.layers
        self._leave_case()
        if opened.case is None:
            self.store = None
            self.training.study_changed()
        self._reset_label_state()
        self.layers = CaseLayers(self.viewer, opened, reuse=before)
        self.layers.labels[LABEL].events.paint.connect(self._painted)
        self.layers.side_by_side(self._side_by_side)
        self._touched = opened.label is not None
        middle = [n // 2 for n in opened.ras.shape[:3]][::-1]
        for axis, index in enumerate(middle):
            self.viewer.dims.set_current_step(axis, index)
        if self.panel is not None:
            self.panel.show_open(in_study=opened.case is not None)
            self.panel.show_idle()
        if opened.draft:
            self._notice("Unsaved work on this case was restored.")
        elif not opened.volume.sides_known:
            self._notice("The file does not say which side is the patient's left: check sides yourself.", True)
        else:
            self._notice("" if opened.case else "This scan is in no study: make one to keep labels.")
        self._refresh_lists()
        self._measure_timer.start()

    def _leave_case(self) -> None:
        """Jobs of the open scan end; unsaved work is kept."""
        if self.layers is None:
            return
        self._save_draft_now()
        self.worker.cancel_owned_by(self.layers.opened)

    def _next_unjudged(self) -> str | None:
        """The next case of the training or validation split without a judgement, after the open one."""
        if self.store is None:
            return None
        states = self.store.states()
        open_case = self.layers.opened.case if self.layers is not None else None
        cases = [case for case in self.store.cases() if case.split != "test"]
        start = next((i + 1 for i, c in enumerate(cases) if open_case and c.case_id == open_case.case_id), 0)
        for case in cases[start:] + cases[:start]:
            if states.get((case.case_id, self.structure), "unknown") in ("unknown", "draft"):
                return case.case_id
        return None

    def next_case(self) -> None:
        case_id = self._next_unjudged()
        if case_id is None:
            show_info("Every case is judged for this structure.")
        else:
            self.open_case(case_id)

    def choose_structure(self, name: str) -> None:
        """Judge another structure of the open case."""
        if self.store is None or self.layers is None or self.layers.opened.case is None or name == self.structure:
            return
        self._leave_case()
        self.structure = name
        layers, store, opened, case = self.layers, self.store, self.layers.opened, self.layers.opened.case

        def show(found: tuple[Any, bool]) -> None:
            label, _ = found
            empty = np.zeros_like(layers.masks[LABEL])
            for probs in layers.probs.values():
                probs[:] = 0
            layers.apply_threshold(self._threshold)
            self._reset_label_state()
            self._write_label(label if label is not None else empty)
            self._touched = label is not None
            self._refresh_lists()
            self._measure_timer.start()

        self._submit(
            lambda: self.engine.label_of(store, case, name, opened.volume),
            on_result=show,
            owner=opened,
            text="Opening …",
        )

    def add_structure(self, name: str) -> None:
        if self.store is None:
            return
        store = self.store
        cleaned = " ".join(name.split())
        if self._guard(lambda: store.add_structure(cleaned, prompts=[cleaned]) or True):
            self.choose_structure(cleaned)
            self.structure = cleaned
            self._refresh_lists()

    def _refresh_lists(self) -> None:
        """Cases, structures and models, as they are now."""
        store = self.store

        def show(models: list[ModelEntry]) -> None:
            chosen = self.model.name if self.model else ""
            newest = next((m for m in models if m.kind == "trained"), models[0] if models else None)
            self.models = models
            self.model = next((m for m in models if m.name == chosen), newest)
            if self.panel is not None:
                rows = [(m.name, ", ".join(m.known) or "no structure yet") for m in models]
                self.panel.show_models(rows, self.model.name if self.model else "")

        self.worker.submit(Job(lambda: self.engine.models(store), on_result=show, on_error=self._fail))
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
        self.panel.show_structures([s.name for s in store.structures()], self.structure)
        self._show_state()

    def _show_state(self) -> None:
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

    # -- prompting --------------------------------------------------------------------------------------------

    @property
    def open_case_id(self) -> str:
        """The id of the case on screen, or ""."""
        case = self.layers.opened.case if self.layers is not None else None
        return case.case_id if case is not None else ""

    @property
    def _threshold(self) -> float:
        return float(self.panel.threshold.value()) if self.panel is not None else 0.5

    def choose_model(self, name: str) -> None:
        self.model = next((m for m in self.models if m.name == name), self.model)

    def visible_slice(self, axis: int) -> int:
        """The canonical index of the slice on screen, along a canonical axis."""
        if self.layers is None:
            return 0
        shown = int(self.viewer.dims.current_step[2 - axis])
        return int(self.layers.opened.ras.shape[axis]) - 1 - shown

    def run_prompt(self, text: str) -> None:
        """Run one prompt per line on the open scan: the visible slice at once, then outward."""
        if self.layers is None:
            self._notice("Open a scan first.", True)
            return
        if not self.layers.present():
            self._notice("Layers of this scan were removed. Open it again to go on.", True)
            return
        if self.model is None:
            self._notice("There is no model yet. Make one with: amvlm pretrain STUDY, then amvlm train STUDY", True)
            return
        lines = [line for line in text.splitlines() if line.strip()] or [text]
        for line in lines:
            self._run_line(line)

    def _run_line(self, prompt: str) -> None:
        layers, model = self.layers, self.model
        if layers is None or model is None:
            return
        if self._judging:
            self._notice("Wait until the label is saved.")
            return
        opened = layers.opened
        visible = tuple(self.visible_slice(axis) for axis in range(3))
        began = time.monotonic()
        head: dict[str, Any] = {}

        def arrived(result: Any) -> None:
            if self.layers is not layers or not layers.present():
                return
            if isinstance(result, tuple):
                warnings, head["axis"], head["predicts"], head["fingerprint"] = result
                head["warnings"] = warnings
                self._notice(" ".join(warnings), bool(warnings))
                return
            found = {TEXT_MASK: result.text_mask, PREDICTION: result.prediction, "merged": result.merged}
            layers.show_slices(head["axis"], result.indices, found, self._threshold)
            left = (time.monotonic() - began) / result.done * (result.total - result.done)
            if self.panel is not None:
                self.panel.show_progress(
                    result.done, result.total, f"{result.done} of {result.total} slices, {left:.0f} s left"
                )

        def ended(whole: bool) -> None:
            if self.layers is not layers:
                return
            if self.panel is not None:
                self.panel.show_idle()
            if whole and layers.present():
                self._prompt, self._fingerprint = prompt, str(head.get("fingerprint", ""))
                if not head.get("predicts"):
                    self._start = TEXT_MASK if self._start == "merged" else self._start
                self._start_label_if_untouched()
                self._show_where_found(prompt, head["axis"], head["warnings"])
            self._measure_timer.start()

        if self.panel is not None:
            self.panel.show_progress(0, 0, "Loading the model …")
        self.worker.submit(
            Job(
                lambda: self.engine.segment(model.folder, opened.volume, prompt, visible), owner=opened, kind="prompt",
                on_result=arrived, on_end=ended, on_error=self._fail,
            )
        )  # fmt: skip

    def _show_where_found(self, prompt: str, axis: int, warnings: list[str]) -> None:
        """Say plainly when nothing was found; go to the largest slice when this one is empty."""
        layers = self.layers
        if layers is None:
            return
        fullest = layers.fullest_slice(axis)
        if fullest is None:
            nothing = f"The text finds no “{prompt}” here. Lower the threshold, try other words, or choose Absent."
            self._notice(" ".join([*warnings, nothing]), True)
        elif layers.is_empty_at(axis, self.visible_slice(axis)):
            self.viewer.dims.set_current_step(2 - axis, layers.opened.ras.shape[axis] - 1 - fullest)

    def cancel(self) -> None:
        """End the jobs of the open scan; what is on screen stays."""
        if self.layers is not None:
            self.worker.cancel_owned_by(self.layers.opened)
        if self.panel is not None:
            self.panel.show_idle()

    # -- masks and your label ---------------------------------------------------------------------------------

    def _reset_label_state(self) -> None:
        self._touched = False
        self._filling = False
        self._dirty = False
        self._started_from = "empty"
        self._start_mask: Any = None
        self._prompt = ""
        self._fingerprint = ""
        self._start = "merged"

    def _painted(self, _: Any = None) -> None:
        if not self._filling:
            self._touched = True
            self._dirty = True
        self._measure_timer.start()

    def _write_label(self, wanted: Any) -> None:
        if self.layers is not None:
            self._filling = True
            self.layers.replace_label(wanted)
            self._filling = False

    def _apply_threshold(self, threshold: float) -> None:
        if self.layers is not None:
            self.layers.apply_threshold(threshold)
            self._measure_timer.start()

    def _start_label_if_untouched(self) -> None:
        """Your label follows the chosen mask until the first stroke, never after."""
        if self.layers is not None and not self._touched:
            self._fill_label(self._start)

    def start_label_from(self, source: str) -> None:
        """Put a mask into your label, as an undoable step, even after strokes."""
        self._start = source
        if self.layers is not None:
            self._fill_label(source)
            self._touched = False

    def _fill_label(self, source: str) -> None:
        if self.layers is None:
            return
        wanted = self.layers.mask_to_start_from(source, self._threshold)
        self._write_label(wanted)
        self._started_from, self._start_mask = source, wanted
        self._dirty = True
        self._measure_timer.start()

    def show_side_by_side(self, on: bool) -> None:
        self._side_by_side = on
        if self.layers is not None:
            self.layers.side_by_side(on)

    def toggle_view(self) -> None:
        self.show_side_by_side(not self._side_by_side)

    def _measure(self) -> None:
        layers = self.layers
        if layers is None or not layers.present():
            return

        def show(found: Measures) -> None:
            if self.panel is not None and self.layers is layers:
                volumes = (found.text_ml, found.prediction_ml, found.label_ml)
                self.panel.show_measures(volumes, found.text_against_prediction, found.label_against_text)

        masks = layers.masks
        self.worker.submit(
            Job(
                lambda: self.engine.measure(
                    masks[TEXT_MASK], masks[PREDICTION], masks[LABEL], layers.opened.volume.voxel_ml
                ),
                owner=layers.opened, on_result=show,
            )
        )  # fmt: skip

    def autosave(self) -> None:
        """Keep work in progress as a draft."""
        store, layers = self.store, self.layers
        if store is None or layers is None or layers.opened.case is None or not (self._dirty and self._touched):
            return
        self._dirty = False
        case, structure, label, volume = (
            layers.opened.case,
            self.structure,
            layers.masks[LABEL].copy(),
            layers.opened.volume,
        )
        self.worker.submit(
            Job(
                lambda: self.engine.save_draft(store, case, structure, label, volume),
                on_result=lambda _: self._show_state(), on_error=self._fail,
            )
        )  # fmt: skip

    def _save_draft_now(self) -> None:
        """The same without the worker, when the case or the window is left."""
        store, layers = self.store, self.layers
        if store is None or layers is None or layers.opened.case is None or not (self._dirty and self._touched):
            return
        self._dirty = False
        case, label = layers.opened.case, layers.masks[LABEL]
        self._guard(lambda: list(self.engine.save_draft(store, case, self.structure, label, layers.opened.volume)))

    # -- judging ----------------------------------------------------------------------------------------------

    def _ready_to_judge(self) -> tuple[LabelStore, OpenCase] | None:
        """The study and open case, unless something still runs for it."""
        if self.store is None or self.layers is None or self.layers.opened.case is None:
            self._notice("This scan is in no study: make one to keep labels.", True)
            return None
        if not self.structure:
            self._notice("Add a structure first.", True)
            return None
        if self._judging or self.worker.has_job_of(self.layers.opened, "prompt"):
            self._notice("Wait until the prompt has finished, or cancel it.", True)
            return None
        return self.store, self.layers.opened

    def accept(self) -> None:
        """Keep your label as a revision, then open the next unjudged case."""
        ready = self._ready_to_judge()
        if ready is None or self.layers is None:
            return
        store, opened = ready
        label = self.layers.masks[LABEL].copy()
        if not label.any():
            self._notice("Your label is empty. If the structure is not in this scan, choose Absent.", True)
            return
        edited = int(np.count_nonzero(label != self._start_mask)) if self._start_mask is not None else int(label.sum())
        origin = {
            "prompt": self._prompt, "source": _SOURCES[self._started_from], "model_fingerprint": self._fingerprint,
            "edited_voxels": edited,
        }  # fmt: skip
        structure, case = self.structure, opened.case
        if case is None:
            return
        self._begin_judging("Saving …")
        self.worker.submit(
            Job(
                lambda: self.engine.accept(store, case, structure, label, opened.volume, origin),
                on_result=lambda _: self._judged(f"{structure} accepted in {opened.title}."), on_error=self._fail,
            )
        )  # fmt: skip

    def _begin_judging(self, text: str) -> None:
        self._judging = True
        if self.panel is not None:
            self.panel.enable_judging(False)
            self.panel.show_progress(0, 0, text)

    def _judged(self, sentence: str, advance: bool = True) -> None:
        self._judging = False
        self._dirty = False
        if self.panel is not None:
            self.panel.enable_judging(True)
            self.panel.show_idle()
        self._notice(sentence)
        self.training.labels_changed()
        self._refresh_lists()
        case_id = self._next_unjudged() if advance else None
        if case_id is not None:
            self.open_case(case_id)

    def mark_absent(self) -> None:
        ready = self._ready_to_judge()
        if ready is not None and ready[1].case is not None:
            store, case = ready[0], ready[1].case
            if self._guard(lambda: store.mark_absent(case.case_id, self.structure, prompt=self._prompt)):
                self._judged(f"{self.structure} marked absent in {ready[1].title}.")

    def skip(self) -> None:
        ready = self._ready_to_judge()
        if ready is not None and ready[1].case is not None:
            store, case = ready[0], ready[1].case
            if self._guard(lambda: store.mark(case.case_id, self.structure, "skipped") or True):
                self._judged(f"{ready[1].title} skipped.")

    def undo_label(self) -> None:
        """Back to the judgement before the current one, of the open case."""
        ready = self._ready_to_judge()
        if ready is not None and ready[1].case is not None:
            store, case = ready[0], ready[1].case
            revision = self._guard(lambda: store.undo(case.case_id, self.structure))
            if revision is not None:
                words = {
                    "accepted": "an earlier label counts again",
                    "absent": "absent again",
                    "withdrawn": "not judged",
                }
                self._judged(f"Undone: {self.structure} is {words[revision.kind]}.", advance=False)

    # -- running ----------------------------------------------------------------------------------------------

    def _submit(self, work: Any, *, on_result: Any, text: str, owner: object = None) -> None:
        if self.panel is not None:
            self.panel.show_progress(0, 0, text)

        def ended(_: bool) -> None:
            if self.panel is not None and not self.worker.busy:
                self.panel.show_idle()

        self.worker.submit(Job(work, owner=owner, on_result=on_result, on_end=ended, on_error=self._fail))

    def warn(self, text: str) -> None:
        show_warning(text)
