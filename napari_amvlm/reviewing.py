"""The Review panel's side of the controller: the queue, thumbnails, provenance, and two revisions side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from amvlm.store import DEFAULT_ORDER, Order, Quality, Revision, queue, shuffled
from napari_amvlm.engine import Mask, dice
from napari_amvlm.jobs import Job
from napari_amvlm.layers import PREDICTION, TEXT_MASK
from napari_amvlm.panels.queue import QueueRow
from napari_amvlm.wording import printable, unmarked

if TYPE_CHECKING:
    from amvlm.store import LabelStore
    from napari_amvlm.controller import Controller
    from napari_amvlm.panels.review import ReviewPanel

STATES = {
    "unknown": "not judged", "draft": "in progress", "accepted": "✓ accepted", "absent": "∅ absent",
    "rejected": "✕ rejected", "skipped": "↷ skipped",
}  # fmt: skip
_FILTERED = {
    "To judge": ("unknown", "draft", "skipped"), "Accepted": ("accepted",), "Absent": ("absent",),
    "Skipped": ("skipped",), "Rejected": ("rejected",), "Work in progress": ("draft",),
}  # fmt: skip
_JUDGED, _WAITING = ("accepted", "absent"), ("unknown", "draft")
KIND = "assess"
THUMBNAILS = "thumbnails"
BINS = 20


class Reviewing:
    """Lists the cases in the order in which they need a look; everything slow runs in the worker."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.panel: ReviewPanel | None = None
        self._order, self._filter = str(DEFAULT_ORDER), "To judge"
        self._undrawn: list[str] = []
        self._job: Job | None = None
        self._showing_difference = False

    def attach(self, panel: ReviewPanel) -> None:
        self.panel = panel
        wires = (
            (panel.assess_requested, self.assess),
            (panel.cancel_requested, self.cancel),
            (panel.order_chosen, self._choose_order),
            (panel.filter_chosen, self._choose_filter),
            (panel.pictures_wanted, self._draw_thumbnails),
            (panel.case_opened, self._controller.open_case),
            (panel.case_selected, self.show_history),
            (panel.judged, self.judge),
            (panel.step_requested, self.step),
            (panel.restore_requested, self.restore),
            (panel.difference_requested, self.show_difference),
            (panel.difference_closed, self.close_difference),
        )
        for signal, method in wires:
            signal.connect(self._controller.slot(method))
        self.study_changed()

    def detach(self, panel: object) -> None:
        """The panel was closed."""
        if self.panel is panel:
            self.panel = None

    def study_changed(self) -> None:
        """Another study is open."""
        self.cancel()
        self._undrawn = []
        if self.panel is not None:
            self.panel.queue.cases.forget_pictures()
        if self.panel is not None and self._controller.store is None:
            self.panel.show_no_study()
        self.refresh()

    def case_opened(self) -> None:
        """Another case is on screen: its history is the one to show."""
        if self._showing_difference and self.panel is not None:
            self.panel.show_difference_open(False)
        self._showing_difference = False
        if self._controller.open_case_id:
            self.show_history(self._controller.open_case_id)

    # -- the queue --------------------------------------------------------------------------------------------

    def _choose_order(self, order: str) -> None:
        self._order = order
        self.refresh()

    def _choose_filter(self, name: str) -> None:
        self._filter = name
        self.refresh()

    def rows(self) -> list[QueueRow]:
        """Cases under the chosen filter, in the chosen order, for the structure at hand."""
        store, structure = self._controller.store, self._controller.structure
        if store is None:
            return []
        names, states, quality = self._controller.titles(), store.states(), store.quality()
        rows = []
        for case_id in self.in_order(store, quality):
            found = quality.get((case_id, structure))
            state = states.get((case_id, structure), "unknown")
            if not self._passes(found, state):
                continue
            judged = state in _JUDGED
            rows.append(
                QueueRow(
                    case_id, names.get(case_id, case_id), STATES.get(state, state),
                    None if found is None or judged else found.expected_dice,
                    "" if found is None or judged else "; ".join(found.flags),
                )
            )  # fmt: skip
        return rows

    def in_order(self, store: LabelStore, quality: dict[tuple[str, str], Quality] | None = None) -> list[str]:
        """All cases but those for testing, in the chosen order; what is not graded comes last, in random order."""
        chance = shuffled(case.case_id for case in store.cases() if case.split != "test")
        if self._order == "random":
            return chance
        if self._order == "name":
            names = self._controller.titles()
            return sorted(chance, key=lambda case_id: (names.get(case_id, case_id), case_id))
        quality = store.quality() if quality is None else quality
        order = cast(Order, "worst" if self._order == "best" else self._order)
        graded = queue([q for (_, name), q in quality.items() if name == self._controller.structure], order)
        place = {case_id: n for n, case_id in enumerate(graded[::-1] if self._order == "best" else graded)}
        return sorted(chance, key=lambda case_id: place.get(case_id, len(place)))

    def next_to_judge(self) -> str | None:
        """The case to judge after the open one (or one that could not be opened), in the chosen order, if any."""
        store, structure = self._controller.store, self._controller.structure
        if store is None:
            return None
        listed, states, now = self.in_order(store), store.states(), self._controller.workspace.case_asked_for
        start = listed.index(now) + 1 if now in listed else 0
        waiting = (c for c in listed[start:] + listed[:start] if states.get((c, structure), "unknown") in _WAITING)
        return next(waiting, None)

    def waiting(self) -> int:
        """How many cases wait for a judgement of the chosen structure."""
        store, structure = self._controller.store, self._controller.structure
        if store is None:
            return 0
        states = store.states()
        return sum(states.get((case.case_id, structure), "unknown") in _WAITING
                   for case in store.cases() if case.split != "test")  # fmt: skip

    def _passes(self, found: Quality | None, state: str) -> bool:
        if self._filter == "Flagged":
            return found is not None and bool(found.flags) and state not in _JUDGED
        return self._filter == "All" or state in _FILTERED[self._filter]

    def refresh(self) -> None:
        """The queue as the store is now."""
        self._controller.guard(self._refresh, once=True)

    def _refresh(self) -> None:
        panel, store, structure = self.panel, self._controller.store, self._controller.structure
        if panel is None or store is None:
            return
        rows = self.rows()
        panel.show_queue(rows, self._controller.open_case_id)
        quality, states = store.quality(), store.states()
        waiting = [
            found.expected_dice
            for (case_id, name), found in quality.items()
            if name == structure
            and found.expected_dice is not None
            and states.get((case_id, name), "unknown") in _FILTERED["To judge"]
        ]
        panel.show_histogram(np.histogram(waiting, BINS, (0, 1))[0].tolist() if waiting else [])
        graded = (
            f"{len(waiting)} graded, half of them below {np.median(waiting):.2f}." if waiting
            else "None is graded yet: Assess all cases runs the model on them."
        )  # fmt: skip
        panel.show_summary(
            f"{printable(structure) or 'No structure yet'}: {len(rows)} cases listed. {graded}",
            bool(self._controller.workspace.model),
        )

    def _draw_thumbnails(self, case_ids: list[str]) -> None:
        """Pictures of the cases that are looked at, one job at a time."""
        store, worker = self._controller.store, self._controller.worker
        self._undrawn = list(dict.fromkeys([*case_ids, *self._undrawn]))  # what is looked at now comes first
        if store is None or not self._undrawn or worker.has_job_of(store, THUMBNAILS):
            return
        engine, now = self._controller.engine, self._undrawn
        self._undrawn = []

        def show(found: tuple[str, int, int, bytes]) -> None:
            case_id, width, height, rgb = found
            if self.panel is not None and self._controller.store is store:
                self.panel.show_thumbnails({case_id: (width, height, rgb)})

        def ended(_: bool) -> None:
            if self._controller.store is store:
                self._draw_thumbnails([])

        worker.submit(
            Job(lambda: engine.thumbnails(store, now), owner=store, kind=THUMBNAILS, on_result=show, on_end=ended,
                polite=True)
        )  # fmt: skip

    def step(self, by: int) -> None:
        """Open the next or the previous case of the queue."""
        ids = [row.case_id for row in self.rows()]
        if not ids:
            return
        now = self._controller.open_case_id
        place = ids.index(now) + by if now in ids else 0
        self._controller.open_case(ids[place % len(ids)])

    def judge(self, case_id: str, verdict: str) -> None:
        """A key of the queue: judges the case that is open and selected, else opens the selected one."""
        controller = self._controller
        if case_id != controller.open_case_id:
            controller.open_case(case_id)
            controller.notice("Look at the case first: the same key then judges it.")
            return
        judging = controller.judging
        {"accept": judging.accept, "absent": judging.mark_absent, "skip": judging.skip, "reject": judging.reject}[
            verdict
        ]()

    def assess(self) -> None:
        """Run the model over every unjudged training case and keep what is seen in the store."""
        controller, store, model = self._controller, self._controller.store, self._controller.workspace.model
        if store is None or model is None or self.panel is None:
            return
        panel = self.panel
        panel.show_progress(0, 0, "Loading the model …")

        def ended(_: bool) -> None:
            panel.show_idle()
            self.refresh()

        def failed(text: str) -> None:
            panel.show_idle()
            controller.fail(text)

        self._job = controller.worker.submit(
            Job(
                lambda: controller.engine.assess(model.folder, store), owner=store, kind=KIND, on_end=ended,
                on_result=lambda step: panel.show_progress(step[0], step[1], f"{step[0]} of {step[1]} cases"),
                on_error=failed, polite=True,
            )
        )  # fmt: skip

    def cancel(self) -> None:
        """Stop assessing; what was graded so far is kept."""
        if self._job is not None:
            self._job.cancel()
            self._job = None

    # -- provenance -------------------------------------------------------------------------------------------

    def show_history(self, case_id: str) -> None:
        """Every revision of a case's label: when, who, from what, how much by hand."""
        self._controller.guard(lambda: self._show_history(case_id), once=True)

    def _show_history(self, case_id: str) -> None:
        store, structure = self._controller.store, self._controller.structure
        if self.panel is None or store is None or not case_id or not structure:
            return
        title = self._controller.titles().get(case_id, case_id)
        rows = [provenance(revision) for revision in reversed(store.history(case_id, structure))]
        self.panel.show_history(f"{printable(structure)} in {title}: {len(rows)} revisions", rows)

    def restore(self, revision_id: int) -> None:
        """Make an earlier revision count again; the case is opened anew."""
        controller, store = self._controller, self._controller.store
        revision = None if store is None else controller.guard(lambda: store.restore(revision_id))
        if revision is not None:
            if revision.case_id == controller.open_case_id and revision.structure == controller.structure:
                controller.label.saved()
            controller.training.labels_changed()
            controller.open_case(revision.case_id)

    def show_difference(self, first: int, second: int) -> None:
        """Two revisions in the cells of text mask and prediction, their disagreement as an outline in the third."""
        controller, store, layers = self._controller, self._controller.store, self._controller.layers
        if store is None or layers is None or layers.opened.case is None:
            return
        case = layers.opened.case
        by_id = {r.revision_id: r for r in store.history(case.case_id, controller.structure)}
        chosen = [by_id[n] for n in (first, second) if n in by_id and by_id[n].kind == "accepted"]
        if len(chosen) != 2:
            controller.notice("Open the case first, and choose two accepted revisions.", True)
            return

        def show(masks: list[Mask]) -> None:
            if controller.layers is not layers or not layers.present():
                return
            alike = chosen[0].author == chosen[1].author
            names = [f"No. {r.revision_id}" if alike else unmarked(r.author[:9].strip()) for r in chosen]
            layers.compare(masks, names)
            controller.viewing.compare()
            controller.draw_outlines()
            self._showing_difference = True
            ml = layers.opened.volume.voxel_ml
            apart = int(np.count_nonzero(masks[0] != masks[1]))
            if self.panel is not None:
                self.panel.show_difference_open(
                    True, f"{names[0]}: {masks[0].sum() * ml:.2f} ml; {names[1]}: {masks[1].sum() * ml:.2f} ml. "
                    f"Dice {dice(masks[0], masks[1]):.2f}; {apart:,} voxels ({apart * ml:.2f} ml) differ.",
                )  # fmt: skip

        controller.worker.submit(
            Job(lambda: controller.engine.revisions(store, chosen, layers.opened.volume), owner=layers.opened,
                on_result=show, on_error=controller.fail)
        )  # fmt: skip

    def close_difference(self) -> None:
        """The model's masks again."""
        layers = self._controller.layers
        if layers is not None and self._showing_difference:
            layers.end_comparison([TEXT_MASK, PREDICTION])
            self._controller.prompting.apply_threshold(self._controller.workspace.threshold)
        self._showing_difference = False
        if self.panel is not None:
            self.panel.show_difference_open(False)


def when(revision: Revision) -> str:
    """A revision's time to the minute, as local people write it."""
    return revision.time[:16].replace("T", " ")


def provenance(revision: Revision) -> tuple[int, str, str, str, str, str]:
    """(revision, when, who, what, from, edits) as the panel lists them."""
    origin = revision.source + (f" “{revision.prompt}”" if revision.prompt else "")
    if revision.model_fingerprint:
        origin += f", model {revision.model_fingerprint[:8]}"
    edits = f"{revision.edited_voxels:,}" if revision.kind == "accepted" else ""
    return revision.revision_id, when(revision), revision.author, revision.kind, origin, edits
