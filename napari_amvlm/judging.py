"""The four judgements: accept, absent, skip, undo."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amvlm.store import Case, LabelStore, Mark
from napari_amvlm.engine import OpenCase
from napari_amvlm.jobs import Job
from napari_amvlm.layers import LABEL
from napari_amvlm.prompting import KIND
from napari_amvlm.wording import printable

if TYPE_CHECKING:
    from napari_amvlm.controller import Controller


class Judging:
    """Judges the open case for the chosen structure, then offers the next one."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.saving = False

    def _ready(self) -> tuple[LabelStore, OpenCase, Case] | None:
        """Study, open scan and case; None (and a notice) where a judgement is not possible now."""
        controller = self._controller
        layers = controller.layers
        case = layers.opened.case if layers is not None else None
        if controller.store is None or layers is None or case is None:
            controller.notice("This scan is in no study: make one to keep labels.", True)
        elif self.saving or controller.worker.has_job_of(layers.opened, KIND):
            controller.notice("Wait until the prompt has finished, or cancel it.", True)
        elif not controller.structures.exists(controller.structure) and not controller.label.unsaved.ask():
            controller.notice("Name the structure first: what you painted stays on screen.", True)
        else:
            return controller.store, layers.opened, case
        return None

    def accept(self) -> None:
        """Keep your label as a revision, then open the next unjudged case."""
        controller, ready = self._controller, self._ready()
        if ready is None or controller.layers is None:
            return
        store, opened, case = ready
        label = controller.layers.masks[LABEL].copy(order="K")
        if not label.any():
            controller.notice("Your label is empty. If the structure is not in this scan, choose Absent.", True)
            return
        origin, structure = controller.label.origin(), controller.structure
        self.saving = True
        if controller.panel is not None:
            controller.panel.enable_judging(False)
            controller.panel.show_progress(0, 0, "Saving …")
        controller.worker.submit(
            Job(
                lambda: controller.engine.accept(store, case, structure, label, opened.volume, origin),
                on_result=lambda _: self._judged(f"{printable(structure)} accepted in {opened.title}."),
                on_error=self._refused,
            )
        )  # fmt: skip

    def mark_absent(self) -> None:
        """The structure is not in this scan."""
        if (ready := self._ready()) is not None:
            store, opened, case = ready
            structure = self._controller.structure
            if self._tried(lambda: store.mark_absent(case.case_id, structure)):
                self._judged(f"{printable(structure)} marked absent in {opened.title}.")

    def skip(self) -> None:
        """Leave the case unjudged and go on."""
        self._set_aside("skipped")

    def reject(self) -> None:
        """The mask is no good and not worth mending: the trainer is to learn nothing from this case."""
        self._set_aside("rejected")

    def _set_aside(self, state: Mark) -> None:
        if (ready := self._ready()) is not None:
            store, opened, case = ready
            structure = self._controller.structure
            self._controller.label.save_now()  # strokes stay as a draft
            if self._tried(lambda: store.mark(case.case_id, structure, state) or True):
                self._judged(f"{opened.title} {state}.", settled=False)

    def undo(self) -> None:
        """Back to the judgement before the current one, of the open case."""
        if (ready := self._ready()) is not None:
            store, _, case = ready
            structure = self._controller.structure
            revision = self._tried(lambda: store.undo(case.case_id, structure))
            if revision is not None:
                words = {
                    "accepted": "an earlier label counts again",
                    "absent": "absent again",
                    "withdrawn": "not judged",
                }
                self._judged(f"Undone: {printable(structure)} is {words[revision.kind]}.", advance=False)

    def _tried(self, call: Callable[[], Any]) -> Any:
        """A judgement's result; None where the study refuses it, which is said."""
        result = self._controller.guard(call)
        if result is None:
            self._controller.refresh_lists()  # another window or a command may have judged the case
        return result

    def _refused(self, text: str) -> None:
        self._controller.fail(text)
        self._controller.refresh_lists()

    def failed(self) -> None:
        """Saving did not work; the label is still on screen."""
        self.saving = False

    def _judged(self, sentence: str, advance: bool = True, settled: bool = True) -> None:
        """Go on after a judgement; one that is ``settled`` leaves no strokes to save."""
        controller = self._controller
        self.saving = False
        if settled:
            controller.label.saved()
        if controller.panel is not None:
            controller.panel.enable_judging(True)
            controller.panel.show_idle()
        controller.notice(sentence)
        controller.training.labels_changed()
        controller.refresh_lists()
        case_id = controller.reviewing.next_to_judge() if advance else None
        if case_id is not None:
            controller.open_case(case_id)
