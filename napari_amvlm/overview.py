"""What there is and how far it is: cases, structures, models, the state of the open case, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_amvlm.layers import LABEL
from napari_amvlm.next_step import Progress, Situation, what_next
from napari_amvlm.wording import printable

if TYPE_CHECKING:
    from napari_amvlm.controller import Controller

MARKS = {"accepted": "✓", "absent": "∅", "skipped": "↷", "rejected": "✕", "draft": "✎"}
STATES = {
    "unknown": "not judged yet.", "draft": "in progress, saved as a draft.", "accepted": "accepted.",
    "absent": "marked absent.", "rejected": "rejected.", "skipped": "skipped.",
}  # fmt: skip


class Overview:
    """Fills the lists of the panel."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._workspace = controller.workspace

    def refresh(self) -> None:
        """Cases, structures and models, as they are now."""
        self._controller.guard(self._refresh, once=True)

    def _refresh(self) -> None:
        controller, workspace = self._controller, self._workspace
        store, panel = workspace.store, controller.panel
        controller.prompting.list_models()
        controller.reviewing.refresh()
        if panel is None:
            return
        if store is not None:
            names, states = controller.titles(), store.states()
            rows = []
            for case in store.cases():
                mark = MARKS.get(states.get((case.case_id, workspace.structure), ""), "·")
                kept = " (test)" if case.split == "test" else " (validation)" if case.split == "val" else ""
                rows.append((case.case_id, f"{mark}  {names.get(case.case_id, case.case_id)}{kept}"))
            panel.show_cases(rows, workspace.case_id, self.progress().judged)
            structures = store.structures()
            panel.show_structures([s.name for s in structures], workspace.structure)
            panel.suggest_prompt({s.name: s.prompt for s in structures}, workspace.structure)
            controller.prompting.offer_completions()
        self._show_state()

    def show_state(self) -> None:
        """The state of the open case, and what to do next."""
        self._controller.guard(self._show_state, once=True)

    def _show_state(self) -> None:
        panel, store, case = self._controller.panel, self._workspace.store, self._workspace.case
        if panel is None:
            return
        panel.show_next_step(what_next(self.situation()))
        if store is None or case is None:
            return
        test = " This case is kept for testing and never trained on." if case.split == "test" else ""
        if not self._workspace.structure:
            panel.show_state(f"This study has no structure yet.{test}")
            return
        state = store.state(case.case_id, self._workspace.structure)
        panel.show_state(f"{printable(self._workspace.structure)}: {STATES.get(state, f'{state}.')}{test}")

    def progress(self) -> Progress:
        """How far the labels of the chosen structure are."""
        store, structure = self._workspace.store, self._workspace.structure
        if store is None:
            return Progress(0)
        states, cases = store.states(), store.cases()
        found = [states.get((case.case_id, structure), "unknown") for case in cases]
        counts = {state: found.count(state) for state in ("accepted", "absent", "skipped", "rejected")}
        return Progress(len(cases), sum(case.split == "test" for case in cases), **counts)

    def situation(self) -> Situation:
        """What :func:`what_next` goes by."""
        controller, workspace = self._controller, self._workspace
        store, layers, model = workspace.store, workspace.layers, workspace.model
        if store is None:
            return Situation(scan=layers is not None)
        structure = workspace.structure
        state = store.state(workspace.case_id, structure) if workspace.case_id and structure else "unknown"
        return Situation(
            study=True, scan=layers is not None, structure=structure, progress=self.progress(),
            known=model is not None and structure in model.known,
            prompted=layers is not None and layers.was_prompted,
            labelled=layers is not None and bool(layers.masks[LABEL].any()),
            judged=state in ("accepted", "absent", "rejected", "skipped"),
            left=controller.reviewing.waiting(),
            trained=any(each.kind == "trained" and each.name != "bundled" for each in workspace.models),
            training=controller.training.current is not None,
        )  # fmt: skip
