"""Corrections of your label: a brush that copies a mask, and changes of the whole label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers.labels._labels_mouse_bindings import draw

from amvlm.imaging import to_display
from napari_amvlm.engine import Mask
from napari_amvlm.jobs import PROMPT, Job
from napari_amvlm.layers import LABEL

if TYPE_CHECKING:
    from napari.layers import Labels

    from napari_amvlm.controller import Controller


class Correcting:
    """What the row of correcting tools does."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._source = ""
        self._layer: Labels | None = None

    # -- the brush that copies --------------------------------------------------------------------------------

    def use_copy_brush(self, source: str) -> None:
        """Strokes on your label take what ``source`` (a mask's name) says under the brush; "" ends that."""
        self._detach()
        layers = self._controller.layers
        if layers is None or not source:
            return
        self._controller.boxing.use(False)
        label = layers.labels[LABEL]
        self._controller.viewer.layers.selection.active = label
        label.mode = "paint"
        if draw in label.mouse_drag_callbacks:
            label.mouse_drag_callbacks.remove(draw)
        label.mouse_drag_callbacks.append(self._stroke)
        label.events.mode.connect(self._another_tool)
        self._source, self._layer = source, label

    def _another_tool(self, _: Any = None) -> None:
        """The person took another of napari's tools."""
        self.stop()

    def stop(self) -> None:
        """Back to napari's own brush."""
        self._detach()
        if self._controller.panel is not None:
            self._controller.panel.show_copy_brush_off()

    def _detach(self) -> None:
        label, self._layer, self._source = self._layer, None, ""
        if label is not None:
            label.events.mode.disconnect(self._another_tool)
            if self._stroke in label.mouse_drag_callbacks:
                label.mouse_drag_callbacks.remove(self._stroke)
            if str(label.mode) == "paint" and draw not in label.mouse_drag_callbacks:
                label.mouse_drag_callbacks.append(draw)

    def _stroke(self, label: Labels, event: Any) -> Iterator[None]:
        if event.button != 1:
            return
        with label.block_history():
            last = self._place(label, event)
            self._copy(label, [last])
            yield
            while event.type == "mouse_move":
                now = self._place(label, event)
                steps = max(1, int(np.ceil(np.abs(now - last).max() / max(1.0, label.brush_size / 4))))
                self._copy(label, [last + (now - last) * (n + 1) / steps for n in range(steps)])
                last = now
                yield

    def _place(self, label: Labels, event: Any) -> np.ndarray[Any, Any]:
        return np.asarray(label.world_to_data(event.position), dtype=float)

    def _copy(self, label: Labels, centres: list[np.ndarray[Any, Any]]) -> None:
        """Copy the source inside a disc on the displayed plane, as one atom of the stroke."""
        layers = self._controller.layers
        if layers is None or self._source not in layers.masks:
            return
        source = to_display(layers.masks[self._source])
        indices = np.concatenate([self._disc(label, centre) for centre in centres], 1)
        inside = np.all([(row >= 0) & (row < n) for row, n in zip(indices, source.shape, strict=True)], 0)
        where = tuple(np.unique(indices[:, inside], axis=1))
        if where[0].size:
            label.data_setitem(where, source[where])

    def _disc(self, label: Labels, centre: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Voxel indices (3, n) under the brush: a circle in millimetres whose diameter is napari's brush size."""
        shown = list(self._controller.viewer.dims.displayed)
        scale = np.asarray(label.scale)[shown]
        radius = label.brush_size / 2 * scale.min()
        reach = np.ceil(radius / scale).astype(int)
        middle = np.round(centre).astype(int)
        rows, columns = np.mgrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1].reshape(2, -1)
        near = (rows * scale[0]) ** 2 + (columns * scale[1]) ** 2 <= radius**2
        found = np.repeat(middle[:, None], int(near.sum()), 1)
        found[shown[0]] += rows[near]
        found[shown[1]] += columns[near]
        return found

    # -- the whole label --------------------------------------------------------------------------------------

    def apply(self, kind: str) -> None:
        """Smooth, fill holes, keep the largest part, or interpolate; computed in the worker, one undoable step."""
        controller, layers = self._controller, self._controller.layers
        if layers is None or not layers.present():
            return
        if controller.judging.saving or controller.worker.has_job_of(layers.opened, PROMPT):
            controller.notice("Wait until the prompt has finished, or cancel it.", True)
            return
        label, strokes = layers.masks[LABEL], controller.label.strokes
        axis = 2 - int(controller.viewer.dims.order[0])

        def done(wanted: Mask) -> None:
            if controller.layers is not layers or not layers.present():
                return
            if controller.label.strokes != strokes:
                controller.notice("The label changed meanwhile: nothing was done.", True)
                return
            changed = controller.label.edited(wanted)
            words = f"{changed:,} voxels changed." if changed else "nothing to change."
            controller.notice(f"{kind.capitalize()}: {words}")

        controller.worker.submit(
            Job(
                lambda: controller.engine.edit(kind, label, axis, layers.opened.spacing_mm), owner=layers.opened,
                on_result=done, on_error=controller.fail,
            )
        )  # fmt: skip
