"""Your label: what it started from, whether a hand touched it, and that no stroke is lost."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject, QTimer

from napari_amvlm.engine import Mask, Measures
from napari_amvlm.jobs import Job
from napari_amvlm.layers import LABEL, PREDICTION, TEXT_MASK
from napari_amvlm.unsaved import Strokes, Unsaved

if TYPE_CHECKING:
    from napari.layers import Labels

    from napari_amvlm.controller import Controller

AUTOSAVE_MS = 30_000
MEASURE_MS = 400
SOURCES = {
    "merged": "merged", TEXT_MASK: "text mask", PREDICTION: "prediction", "empty": "by hand", "layer": "imported",
    "box": "imported",
}  # fmt: skip


class YourLabel(QObject):
    """The label layer of the open scan.

    It follows the chosen mask until the first stroke and never after; starting over from a mask is an undoable act.
    """

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self._controller = controller
        self.strokes = 0
        self.unsaved = Unsaved(controller)
        self._watched: weakref.ref[Labels] | None = None
        self._measure_timer = self._timer(MEASURE_MS, self.measure)
        self._measure_timer.setSingleShot(True)
        self._autosave_timer = self._timer(AUTOSAVE_MS, self.autosave)
        self._autosave_timer.start()
        self.begin(None)

    def _timer(self, interval: int, call: Callable[[], None]) -> QTimer:
        timer = QTimer(self)
        timer.setInterval(interval)
        timer.timeout.connect(self._controller.slot(call, once=True))
        return timer

    def begin(self, loaded: Mask | None) -> None:
        """Another scan or structure is open; ``loaded`` is the label it has already."""
        self._filling = False
        self._dirty = False
        self._touched = loaded is not None
        self._started_from = "empty"
        self._start_mask = None if loaded is None else loaded.copy(order="K")
        self._start = "merged"
        self._prompt = ""
        self._fingerprint = ""

    def watch(self, layer: Labels) -> None:
        """Hear of strokes on the label's layer, and of undo and redo, which napari does not tell; once per layer."""
        if self._watched is not None and self._watched() is layer:
            return
        self._watched = weakref.ref(layer)
        layer.events.paint.connect(self.painted)

        def undo(labels: Labels) -> None:
            """Undo the last stroke, copy or whole mask"""
            labels.undo()
            self.painted()

        def redo(labels: Labels) -> None:
            """Redo it"""
            labels.redo()
            self.painted()

        layer.bind_key("Control-Z", undo, overwrite=True)
        layer.bind_key("Control-Shift-Z", redo, overwrite=True)

    def origin(self) -> dict[str, Any]:
        """Where the label on screen came from, as a revision records it."""
        layers = self._controller.layers
        if layers is None:
            return {}
        label = layers.masks[LABEL]
        edited = np.count_nonzero(label if self._start_mask is None else label != self._start_mask)
        return {
            "prompt": self._prompt,
            "source": SOURCES[self._started_from],
            "model_fingerprint": self._fingerprint,
            "edited_voxels": int(edited),
        }

    def painted(self, _: Any = None) -> None:
        """The person changed the label (or undid a change)."""
        self.strokes += 1
        if not self._filling:
            self._touched = self._dirty = True
            if not self._controller.structure and self._controller.open_case_id:
                QTimer.singleShot(0, self._controller.slot(self.unsaved.ask_once))  # the stroke comes to its end first
        self.measure_soon()

    @property
    def touched(self) -> bool:
        """True once a hand changed the label, or it was there before."""
        return self._touched

    def prompted(self, prompt: str, fingerprint: str, predicts: bool) -> None:
        """A prompt for the label's structure ran to its end; the label takes its mask."""
        self._prompt, self._fingerprint = prompt, fingerprint
        if not predicts and self._start == "merged":
            self._start = TEXT_MASK
        self.sync_with_source()

    def sync_with_source(self) -> None:
        """Take the chosen mask, unless a hand touched the label."""
        if not self._touched:
            self._fill(self._start)

    def edited(self, wanted: Mask) -> int:
        """Put a corrected label on screen, as one undoable step that counts as the person's own; voxels changed."""
        layers = self._controller.layers
        changed = layers.replace_label(wanted) if layers is not None else 0
        if changed:
            self.painted()
        return changed

    def boxed(self, wanted: Mask) -> int:
        """The same for what a box gave. A label that was empty, or came from boxes alone, is said to come from them."""
        layers = self._controller.layers
        if layers is None:
            return 0
        before = layers.masks[LABEL]
        if self._started_from == "box" or not before.any():
            start = np.zeros_like(before) if self._start_mask is None else self._start_mask.copy(order="K")
            changed = before != wanted
            start[changed] = wanted[changed]
            self._started_from, self._start_mask = "box", start
            self._prompt, self._fingerprint = "boxes, read by LiteMedSAM", ""
        return self.edited(wanted)

    def offer_to_discard(self) -> None:
        """Say that work in progress came back, and offer the way out of it."""
        self._controller.offer(
            "Work in progress was restored.", "Discard it", "Go back to the label as it was last judged",
            self.discard_draft,
        )  # fmt: skip

    def discard_draft(self) -> None:
        """Go back to the label as it was last judged; the restored work can be had again with undo."""
        controller = self._controller
        store, layers = controller.store, controller.layers
        if store is None or layers is None or layers.opened.case is None:
            return
        case, structure, volume = layers.opened.case, controller.structure, layers.opened.volume

        def show(found: tuple[Mask | None, bool]) -> None:
            if controller.layers is layers and controller.structure == structure:
                kept = found[0]
                self.write(np.zeros_like(layers.masks[LABEL]) if kept is None else kept)
                self.begin(kept)
                controller.refresh_lists()
                self.measure_soon()

        def work() -> Any:
            store.discard_draft(case.case_id, structure)
            return controller.engine.label_of(store, case, structure, volume)

        self.saved()
        controller.worker.submit(Job(work, owner=layers.opened, on_result=show, on_error=controller.fail))

    def start_from(self, source: str) -> None:
        """Start over from a mask, even after strokes."""
        self._start = source
        self._fill(source)
        self._touched = False

    def start_from_other(self, mask: Mask, name: str) -> None:
        """Start over from a mask that another layer holds; the revision will name it."""
        self.write(mask)
        self._started_from, self._start_mask = "layer", mask
        self._prompt, self._fingerprint = f"layer {name}"[:200], ""
        self._touched = self._dirty = True
        self.measure_soon()

    def write(self, wanted: Mask) -> None:
        """Put a whole label on screen, as one undoable step that is not a stroke."""
        if self._controller.layers is not None:
            self._filling = True
            self._controller.layers.replace_label(wanted)
            self._filling = False

    def _fill(self, source: str) -> None:
        layers = self._controller.layers
        if layers is None:
            return
        wanted = layers.mask_to_start_from(source)
        self.write(wanted)
        self._started_from, self._start_mask = source, wanted
        self.measure_soon()

    # -- measuring --------------------------------------------------------------------------------------------

    @property
    def painted_voxels(self) -> int:
        """Voxels of a label that a hand touched."""
        layers = self._controller.layers
        return int(np.count_nonzero(layers.masks[LABEL])) if layers is not None and self._touched else 0

    def measure_soon(self) -> None:
        """Measure once things have been quiet for a moment."""
        self._measure_timer.start()

    def measure(self) -> None:
        """Volumes and agreement of the three masks, computed in the worker."""
        controller = self._controller
        layers = controller.layers
        if layers is None or not layers.present():
            return

        def show(found: Measures) -> None:
            if controller.panel is not None and controller.layers is layers:
                volumes = (found.text_ml, found.prediction_ml, found.label_ml)
                unit = "ml" if not planar else "px"
                controller.panel.show_measures(volumes, found.text_against_prediction, found.label_against_text, unit)
            controller.overview.show_state()

        planar = layers.opened.volume.planar  # a picture has no millimetres
        masks, voxel_ml = layers.masks, 1.0 if planar else layers.opened.volume.voxel_ml
        controller.worker.submit(
            Job(
                lambda: controller.engine.measure(masks[TEXT_MASK], masks[PREDICTION], masks[LABEL], voxel_ml),
                owner=layers.opened, on_result=show,
            )
        )  # fmt: skip

    def keep_draft_of(self, structure: str, mask: Mask) -> bool:
        """A mask of another structure that a prompt found: a draft of it, unless a person judged that one already.

        Returns
        -------
        bool
            False where a judgement stands, which the mask must not hide.
        """
        controller = self._controller
        store, layers = controller.store, controller.layers
        if store is None or layers is None or layers.opened.case is None:
            return True
        case, volume = layers.opened.case, layers.opened.volume
        state = store.state(case.case_id, structure)
        if state == "unknown" and mask.any():
            controller.worker.submit(
                Job(
                    lambda: controller.engine.save_draft(store, case, structure, mask, volume),
                    on_result=lambda _: controller.overview.show_state(), on_error=controller.fail,
                )
            )  # fmt: skip
        return state in ("unknown", "draft")

    # -- drafts -----------------------------------------------------------------------------------------------

    def saved(self) -> None:
        """What is on screen was judged, or is not wanted any more: there is nothing left to save."""
        self._dirty = False
        self.unsaved.take(self._controller.open_case_id, self._controller.structure)

    @property
    def nameless(self) -> bool:
        """True where strokes of the open case belong to no structure that the study has."""
        return (strokes := self._strokes()) is not None and not strokes.has_structure()

    def _strokes(self) -> Strokes | None:
        """What a hand painted and nothing keeps yet."""
        store, layers = self._controller.store, self._controller.layers
        if store is None or layers is None or layers.opened.case is None or not (self._dirty and self._touched):
            return None
        return Strokes(store, layers.opened.case, self._controller.structure, layers.masks[LABEL])

    def put_back(self) -> bool:
        """Show the strokes that could not be saved when the case was left; False where there were none."""
        controller = self._controller
        kept = self.unsaved.take(controller.open_case_id, controller.structure)
        if kept is None:
            self.unsaved.offer_kept(controller.open_case_id)
            return False
        self.write(kept)
        self._touched = self._dirty = True
        return True

    def autosave(self) -> None:
        """Keep work in progress as a draft, in the worker."""
        self._controller.guard(self._autosave, once=True)

    def _autosave(self) -> None:
        strokes = self._strokes()
        if strokes is not None and not strokes.has_structure():
            self.unsaved.ask_once()
        elif strokes is not None:
            self._dirty = False
            self.unsaved.keep(strokes)
        self.unsaved.save()

    def save_now(self, ask: bool = True) -> None:
        """The same without the worker, when the case or the window is left."""
        controller, strokes = self._controller, self._strokes()
        if strokes is None:
            return
        named = controller.guard(strokes.has_structure)
        if named is False and ask and self.unsaved.ask():
            named = True
            strokes = strokes.of(controller.structure)
        self._dirty = False
        if named:
            controller.guard(lambda: self.unsaved.save_now(strokes))
        else:
            self.unsaved.keep(strokes.of("") if named is False else strokes)

    def close(self) -> None:
        """The window closes: keep what is unsaved."""
        self._autosave_timer.stop()
        self._measure_timer.stop()
        self.save_now(ask=False)
        self.unsaved.close()
