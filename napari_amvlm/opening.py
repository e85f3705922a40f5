"""Opening and leaving cases: what is on screen, and that nothing painted on it is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_amvlm.engine import OpenCase
from napari_amvlm.layers import LABEL, CaseLayers
from napari_amvlm.next_step import all_judged

if TYPE_CHECKING:
    from napari_amvlm.controller import Controller


class Opening:
    """Puts scans on screen."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._workspace = controller.workspace

    def open_case(self, case_id: str, prompted: bool = False, told: str = "") -> None:
        """Open a case of the study; unsaved work of the one before is kept as a draft.

        Parameters
        ----------
        case_id : str
        prompted : bool
            Run the structure's last prompt on a case that has no label yet.
        told : str
            A sentence that stays on show with the new case.
        """
        controller, workspace = self._controller, self._workspace
        if workspace.store is None:
            return
        workspace.ask_for(case_id)
        self.leave()
        store, structure = workspace.store, workspace.structure  # leaving may have named it
        title = controller.titles().get(case_id, case_id)

        def show(opened: OpenCase) -> None:
            self.show(opened, told)
            if prompted and opened.label is None:
                controller.prompting.run_again()

        controller.submit(
            lambda: controller.engine.open_case(store, case_id, structure, title), on_result=show, text="Opening …"
        )

    def show(self, opened: OpenCase, told: str = "") -> None:
        """Put an opened scan on screen in the place of the one before."""
        controller, workspace = self._controller, self._workspace
        before = workspace.layers
        self.leave()
        if opened.case is None and workspace.store is not None:
            workspace.leave_study()
        if controller.viewer.dims.ndisplay == 3:
            controller.viewer.dims.ndisplay = 2
        controller.correcting.stop()
        controller.boxing.scan_left()
        controller.withdraw_offer()
        layers = CaseLayers(controller.viewer, opened, before, workspace.threshold)
        workspace.show(layers)
        controller.label.begin(opened.label)
        controller.label.watch(layers.labels[LABEL])
        controller.viewing.arrange()
        for axis, index in enumerate([n // 2 for n in opened.ras.shape[:3]][::-1]):
            controller.viewer.dims.set_current_step(axis, index)
        if layers.others:
            controller.draw_outlines()
        self.show_again()
        controller.viewing.begin()
        controller.notice("\n".join([*filter(None, [told]), *opened.notes]), bool(opened.notes))
        if not controller.label.put_back() and opened.draft:
            controller.label.offer_to_discard()
        controller.refresh_lists()
        controller.reviewing.case_opened()

    def show_again(self) -> None:
        """What a panel shows of the scan on screen: after opening it, and where the panel itself was opened."""
        controller, layers, panel = self._controller, self._workspace.layers, self._controller.panel
        if layers is None:
            return
        controller.viewing.opened()
        controller.companions.opened()
        if panel is not None:
            panel.show_open(in_study=layers.opened.case is not None)
            panel.show_reports(layers.opened.reports)
        controller.label.measure_soon()

    def leave(self) -> None:
        """Jobs of the open scan end; unsaved work is kept."""
        if self._workspace.layers is not None:
            self._controller.label.save_now()
            self._controller.worker.cancel_owned_by(self._workspace.layers.opened)

    def next_case(self) -> None:
        """Open the next case that waits, prompted as the one before; or say that there is none."""
        if not self.go_on():
            self._controller.tell(all_judged(self._controller.overview.progress()))

    def go_on(self, told: str = "") -> bool:
        """The same; False where no case waits."""
        case_id = self._controller.reviewing.next_to_judge()
        if case_id is not None:
            self.open_case(case_id, prompted=True, told=told)
        return case_id is not None
