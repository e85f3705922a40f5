"""Builds everything for one viewer, connects panels and features, and says what happened."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import QObject, QTimer

from amvlm.store import LabelStore
from amvlm.store.names import original_names
from napari_amvlm import napari_bridge, wording
from napari_amvlm.boxing import Boxing
from napari_amvlm.companions import Companions
from napari_amvlm.correcting import Correcting
from napari_amvlm.engine import Engine, MissingWeights
from napari_amvlm.guests import Guests
from napari_amvlm.jobs import PROMPT, Job, Worker
from napari_amvlm.judging import Judging
from napari_amvlm.keys import FURTHER_KEYS, KEYS
from napari_amvlm.layers import CaseLayers
from napari_amvlm.opening import Opening
from napari_amvlm.overview import Overview
from napari_amvlm.panels.parts import show_table
from napari_amvlm.prompting import Prompting
from napari_amvlm.reviewing import Reviewing
from napari_amvlm.structures import Structures
from napari_amvlm.studies import Studies
from napari_amvlm.training_controller import TrainingController
from napari_amvlm.viewing import Viewing
from napari_amvlm.workspace import Workspace
from napari_amvlm.your_label import YourLabel

if TYPE_CHECKING:
    import napari

    from napari_amvlm.panels.parts import Panel
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
        self.workspace = Workspace(self)
        self.panel: PromptPanel | None = None
        self._failure = ""
        self._notice = ("", False)
        self._offer: tuple[str, str, str] | None = None
        self._offered: Callable[[], None] = lambda: None
        self.opening = Opening(self)
        self.overview = Overview(self)
        self.studies = Studies(self)
        self.structures = Structures(self)
        self.viewing = Viewing(self)
        self.prompting = Prompting(self)
        self.label = YourLabel(self)
        self.correcting = Correcting(self)
        self.judging = Judging(self)
        self.training = TrainingController(self)
        self.reviewing = Reviewing(self)
        self.guests = Guests(self)
        self.companions = Companions(self)
        self.boxing = Boxing(self)
        for key in KEYS:
            viewer.bind_key(key, self._key(key), overwrite=True)
        viewer.events.theme.connect(self._use_theme)
        self.workspace.study_changed.connect(self.slot(self._study_changed))
        self.workspace.busy_changed.connect(self._show_busy)
        if (window := self.window) is not None:
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
        window = napari_bridge.main_window(viewer) if viewer is not None else None
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
        self.panel = None
        self.workspace.show(None)

    # -- what the window is about -----------------------------------------------------------------------------

    @property
    def store(self) -> LabelStore | None:
        return self.workspace.store

    @property
    def layers(self) -> CaseLayers | None:
        return self.workspace.layers

    @property
    def structure(self) -> str:
        return self.workspace.structure

    @property
    def open_case_id(self) -> str:
        return self.workspace.case_id

    def _study_changed(self) -> None:
        self._notice, self._offer = ("", False), None
        if self.panel is not None:
            self.panel.forget_prompts()
        self.studies.list_recent()
        self.training.study_changed()
        self.reviewing.study_changed()

    # -- panels -----------------------------------------------------------------------------------------------

    def _wires(self, panel: PromptPanel) -> tuple[tuple[Any, Callable[..., Any]], ...]:
        """What each signal of the panel asks for."""
        return (
            (panel.open_scan_requested, self.studies.ask_for_scan),
            (panel.open_folder_requested, self.studies.ask_for_dicom_folder),
            (panel.open_study_requested, self.studies.ask_for_study),
            (panel.new_study_requested, self.studies.ask_for_new_study),
            (panel.add_scans_requested, self.studies.ask_for_more_scans),
            (panel.export_requested, self.studies.ask_for_export),
            (panel.sample_requested, self.studies.open_sample),
            (panel.case_chosen, self.opening.open_case),
            (panel.structure_chosen, self.structures.choose),
            (panel.new_structure_requested, self.studies.ask_for_structure),
            (panel.prompt_submitted, self._run),
            (panel.left, self.focus_scan),
            (panel.cancel_requested, self.prompting.cancel),
            (panel.model_chosen, self.workspace.use),
            (panel.threshold_changed, self.prompting.apply_threshold),
            (panel.threshold_released, self.label.sync_with_source),
            (panel.plane_chosen, self.viewing.show_plane),
            (panel.window_chosen, self.viewing.show_window),
            (panel.box_tool_chosen, self.boxing.use),
            (panel.copy_brush_chosen, self.correcting.use_copy_brush),
            (panel.correction_requested, self.correcting.apply),
            (panel.offer_taken, self._take_offer),
            (panel.keys_requested, self.show_keys),
            (panel.start_requested, self.label.start_from),
            (panel.layer_start_requested, self.guests.start_from),
            (panel.recent_chosen, self.studies.open_recent),
            (panel.rename_requested, self.studies.ask_for_new_name),
            (panel.view_chosen, self.show_side_by_side),
            (panel.accepted, self.judging.accept),
            (panel.absent_marked, self.judging.mark_absent),
            (panel.skipped, self.judging.skip),
            (panel.label_undone, self.judging.undo),
        )

    def attach_prompt_panel(self, panel: PromptPanel) -> None:
        """Connect a panel's signals; the newest panel is the one that is shown to."""
        self.panel = panel
        for signal, method in self._wires(panel):
            signal.connect(self.slot(method))
        self._settle(panel, self._prompt_panel_gone)
        panel.show_idle()
        panel.show_threshold(self.workspace.threshold)
        if self.store is not None:
            panel.show_study_open()
        self.opening.show_again()
        panel.show_notice(*self._notice)
        if self._offer is not None:
            panel.show_offer(*self._offer)
        self.studies.list_recent()
        self.guests.look()
        self.refresh_lists()

    def attach_review_panel(self, panel: ReviewPanel) -> None:
        self._settle(panel, self.reviewing.detach)
        self.reviewing.attach(panel)

    def attach_train_panel(self, panel: TrainPanel) -> None:
        self._settle(panel, self.training.detach)
        self.training.attach(panel)

    def _settle(self, panel: Panel, gone: Callable[[Panel], None]) -> None:
        """One dock with a tab for each panel, in the window's colours; closed, a panel is forgotten."""
        soon = QTimer(panel)  # napari puts the panel into a dock after it was made
        soon.setSingleShot(True)
        soon.timeout.connect(self.slot(lambda: napari_bridge.tab_together(self.viewer, panel, self._panels())))
        soon.start(0)
        panel.use_theme(napari_bridge.is_light(self.viewer))
        panel.destroyed.connect(lambda: gone(panel))

    def _panels(self) -> list[Any]:
        panels = (self.panel, self.reviewing.panel, self.training.panel)
        return [panel for panel in panels if panel is not None]

    def _use_theme(self, _: Any = None) -> None:
        light = napari_bridge.is_light(self.viewer)
        for panel in self._panels():
            panel.use_theme(light)
        self.viewing.use_theme()

    def _prompt_panel_gone(self, panel: Panel) -> None:
        if self.panel is panel:
            self.panel = None

    def _run(self, text: str) -> None:
        self.focus_scan()
        self.notice("")
        self.prompting.run(text)

    def notice(self, text: str, warning: bool = False) -> None:
        """One sentence above the form; names of cases stand for their ids."""
        self._failure = ""
        self._notice = (wording.named(text, self.titles()) if "case-" in text else text, warning)
        if self.panel is not None:
            self.panel.show_notice(*self._notice)

    def offer(self, text: str, action: str, tip: str, then: Callable[[], None]) -> None:
        """Offer something on a button of the panel; only the newest offer stands."""
        self._offered, self._offer = then, (text, action, tip)
        if self.panel is not None:
            self.panel.show_offer(text, action, tip)

    def withdraw_offer(self) -> None:
        """What was offered is of no use any more."""
        self._offer = None
        if self.panel is not None:
            self.panel.hide_offer()

    def _take_offer(self) -> None:
        self._offer = None
        self._offered()

    def fail(self, text: str, once: bool = False) -> None:
        """Say what went wrong; what runs by itself says the same thing ``once``, until something else was said."""
        if once and text == self._failure:
            return
        self.notice(text, warning=True)
        self._failure = text
        show_error(wording.unmarked(self._notice[0]))

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

    def titles(self) -> dict[str, str]:
        """Case id → the name of the file that the case came from, where this machine knows it."""
        names = original_names(self.store.store_id) if self.store is not None else {}
        return {case_id: wording.printable(name) for case_id, name in names.items()}

    def open_case(self, case_id: str) -> None:
        self.opening.open_case(case_id)

    def refresh_lists(self) -> None:
        self.overview.refresh()

    # -- the view ---------------------------------------------------------------------------------------------

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
        """What the person chose: three views, or everything on one image."""
        self.workspace.set_side_by_side(on)
        self.viewing.arrange()

    def toggle_view(self) -> None:
        self.show_side_by_side(not self.viewing.shows_three)

    def show_keys(self) -> Any:
        """List every key and mouse gesture of ours in one window."""
        ours = {key: words.removeprefix("AMVLM: ") for key, (words, _) in KEYS.items()}
        return show_table("Keys and mouse", {**ours, **FURTHER_KEYS}, self.window)

    def submit(
        self, work: Any, *, on_result: Any, text: str, owner: object = None, kind: str = "", on_choice: Any = None
    ) -> object:
        """Run something in the worker, with a bar that says what; returns what :meth:`Workspace.go_on` wants."""
        workspace, token = self.workspace, object()

        def failed(sentence: str) -> None:
            workspace.end(token)
            self.fail(sentence)

        def asked(question: Any) -> None:
            workspace.end(token)
            on_choice(question)

        workspace.begin(text, token)
        job = Job(work, owner, kind, on_result, on_end=lambda _: workspace.end(token), on_error=failed)
        job.on_choice = asked if on_choice is not None else None
        self.worker.submit(job)
        return token

    def with_weights(
        self, look: Callable[[], Any], run: Callable[[], None], *, title: str, text: str, owner: object
    ) -> None:
        """Run something once the published weights it needs are on this machine; ask before anything is downloaded.

        ``look`` is a worker's job that yields what is missing, or None. It counts as the prompt already: nothing is
        judged meanwhile, and it does not run on another scan.
        """

        def seen(missing: MissingWeights | None) -> None:
            if missing is None:
                run()
            elif self.studies.agrees(title, missing.question):
                work, words = partial(self.engine.fetch, missing.name), f"Downloading {missing.megabytes:.0f} MB …"
                self.submit(work, on_result=lambda _: run(), text=words, owner=owner, kind=PROMPT)
            else:
                self.notice(missing.without, True)

        self.submit(look, on_result=seen, text=text, owner=owner, kind=PROMPT)

    def _show_busy(self, done: int, total: int, text: str) -> None:
        if self.panel is not None:
            self.panel.show_progress(done, total, text) if text else self.panel.show_idle()

    def focus_scan(self) -> None:
        """Keys go to the scan from now on."""
        napari_bridge.focus_canvas(self.viewer)

    def tell(self, text: str) -> None:
        show_info(wording.unmarked(text))

    def warn(self, text: str) -> None:
        show_warning(wording.unmarked(text))

    @property
    def window(self) -> Any:
        """The main window, as the parent of another; None without one."""
        return napari_bridge.main_window(self.viewer)
