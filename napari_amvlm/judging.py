"""The four judgements: accept, absent, skip, undo."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from amvlm.store import Case, LabelStore
from napari_amvlm.engine import OpenCase
from napari_amvlm.jobs import PROMPT, Job
from napari_amvlm.layers import LABEL
from napari_amvlm.undoing import Judgement, to_undo
from napari_amvlm.wording import printable

if TYPE_CHECKING:
    from napari_amvlm.controller import Controller


class Judging:
    """Judges the open case for the chosen structure, then offers the next one."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._workspace = controller.workspace
        self.saving = False

    def _ready(self) -> tuple[LabelStore, OpenCase, Case] | None:
        """Study, open scan and case; None (and a notice) where a judgement is not possible now."""
        controller = self._controller
        layers = controller.layers
        case = layers.opened.case if layers is not None else None
        if controller.store is None or layers is None or case is None:
            controller.notice("This scan is in no study: make one to keep labels.", True)
        elif self.saving or controller.worker.has_job_of(layers.opened, PROMPT):
            controller.notice("Wait until the prompt has finished, or cancel it.", True)
        elif not layers.present():
            self.offer_layers()
        elif not controller.structures.exists(controller.structure) and not controller.label.unsaved.ask():
            controller.notice("Name the structure first: what you painted stays on screen.", True)
        else:
            return controller.store, layers.opened, case
        return None

    def offer_layers(self) -> None:
        """A layer of the scan was taken out of the list: what is not on screen is not judged."""
        controller = self._controller
        controller.notice("A layer of this scan was removed from the layer list.", True)
        controller.offer("Nothing is lost.", "Show it again", "Put the removed layers back", self._put_back)

    def _put_back(self) -> None:
        if self._controller.layers is not None:
            self._controller.layers.put_back()
            self._controller.viewing.arrange()
            self._controller.notice("")

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
        done = Judgement(case.case_id, structure, "accepted")
        job = Job(
            lambda: controller.engine.accept(store, case, structure, label, opened.volume, origin),
            on_result=lambda _: self._judged(f"{printable(structure)} accepted in {opened.title}.", done),
            on_end=lambda _: self._workspace.end(job), on_error=lambda text: self._refused(text, job),
        )  # fmt: skip
        self._workspace.begin("Saving …", job)
        controller.worker.submit(job)

    def mark_absent(self) -> None:
        """The structure is not in this scan."""
        if (ready := self._ready()) is not None:
            store, opened, case = ready
            structure, painted = self._controller.structure, self._controller.label.painted_voxels
            question = f"Your label of {printable(structure)} holds {painted:,} voxels. Mark it absent all the same?"
            if painted and not self._controller.studies.is_sure(question):
                return
            if self._tried(lambda: store.mark_absent(case.case_id, structure)):
                done = Judgement(case.case_id, structure, "absent")
                self._judged(f"{printable(structure)} marked absent in {opened.title}.", done)

    def skip(self) -> None:
        """Leave the case unjudged and go on."""
        self._set_aside("skipped")

    def reject(self) -> None:
        """The mask is no good and not worth correcting: the trainer is to learn nothing from this case."""
        self._set_aside("rejected")

    def _mark(self, store: LabelStore, case: Case, structure: str, state: Literal["skipped", "rejected"]) -> bool:
        store.mark(case.case_id, structure, state)
        return True

    def _set_aside(self, state: Literal["skipped", "rejected"]) -> None:
        if (ready := self._ready()) is not None:
            store, opened, case = ready
            structure = self._controller.structure
            self._controller.label.save_now()  # strokes stay as a draft
            if self._tried(lambda: self._mark(store, case, structure, state)):
                self._judged(f"{opened.title} {state}.", Judgement(case.case_id, structure, state), settled=False)

    def undo(self) -> None:
        """Take back the judgement of the case on screen, or the last one, wherever it was, and go there."""
        controller, workspace = self._controller, self._workspace
        store, structure = workspace.store, workspace.structure
        if store is None or self.saving:
            controller.notice("There is nothing to undo.")
            return
        state = store.state(workspace.case_id, structure) if workspace.case_id and structure else "unknown"
        undone = to_undo(workspace.judgements, workspace.case_id, structure, state)
        if undone is None:
            controller.notice("There is nothing to undo: nothing was judged since this study was opened.")
            return
        controller.opening.leave()  # what is on screen is kept before anything changes
        before, draft = store.current(*undone.pair), store.load_draft(*undone.pair)
        if not self._tried(lambda: self._take_back(store, undone)):
            return
        workspace.taken_back(undone)
        if undone.structure != structure:
            workspace.choose_structure(undone.structure)
        title = controller.titles().get(undone.case_id, undone.case_id)
        told = f"Undone: {printable(undone.structure)} is not {undone.state} in {title} any more."
        controller.worker.submit(
            Job(lambda: controller.engine.take_back(store, undone, before, draft), on_error=controller.fail)
        )
        controller.training.labels_changed()
        controller.opening.open_case(undone.case_id, told=told)

    def _take_back(self, store: LabelStore, undone: Judgement) -> bool:
        if undone.state in ("accepted", "absent"):
            store.undo(undone.case_id, undone.structure)
        else:
            store.mark(undone.case_id, undone.structure, "unknown")
        return True

    def _tried(self, call: Callable[[], Any]) -> Any:
        """A judgement's result; None where the study refuses it, which is said."""
        result = self._controller.guard(call)
        if result is None:
            self._controller.refresh_lists()  # another window or a command may have judged the case
        return result

    def _refused(self, text: str, job: Job) -> None:
        """Saving did not work; the label is still on screen."""
        self._workspace.end(job)
        self.saving = False
        if self._controller.panel is not None:
            self._controller.panel.enable_judging(True)
        self._controller.fail(text)
        self._controller.refresh_lists()

    def _judged(self, sentence: str, judgement: Judgement, settled: bool = True) -> None:
        """Go on after a judgement; one that is ``settled`` leaves no strokes to save."""
        controller = self._controller
        self.saving = False
        if settled:
            controller.label.saved()
        self._workspace.judged(judgement)
        if controller.panel is not None:
            controller.panel.enable_judging(True)
        controller.withdraw_offer()
        controller.notice(sentence)
        controller.training.labels_changed()
        controller.refresh_lists()
        controller.opening.go_on(told=sentence)
