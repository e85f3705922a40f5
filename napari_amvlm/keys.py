"""Every key and mouse gesture of ours; none is one of napari's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KEYS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "A": ("AMVLM: accept your label", lambda controller: controller.judging.accept()),
    "N": ("AMVLM: the structure is absent", lambda controller: controller.judging.mark_absent()),
    "K": ("AMVLM: skip this case", lambda controller: controller.judging.skip()),
    "U": ("AMVLM: undo the last judgement, wherever it was", lambda controller: controller.judging.undo()),
    "J": ("AMVLM: open the next unjudged case", lambda controller: controller.opening.next_case()),
    "G": ("AMVLM: side by side or stacked", lambda controller: controller.toggle_view()),
    "H": ("AMVLM: hide or show the masks", lambda controller: controller.viewing.toggle_masks()),
    "Q": ("AMVLM: next plane (axial, coronal, sagittal)", lambda controller: controller.viewing.next_plane()),
    "W": ("AMVLM: next window (CT presets)", lambda controller: controller.viewing.next_window()),
    "8": ("AMVLM: outline what a box holds, on this slice", lambda controller: controller.boxing.toggle()),
    "9": ("AMVLM: carry the box's outline through the scan", lambda controller: controller.boxing.carry()),
    "?": ("AMVLM: list these keys", lambda controller: controller.show_keys()),
}
FURTHER_KEYS = {
    "Enter": "in the prompt: run it; keys then go to the scan",
    "Esc": "in the prompt: leave it",
    "Shift+Enter": "in the prompt: new line, for another structure",
    "Ctrl+↑ Ctrl+↓": "in the prompt: earlier prompts",
    "Wheel": "next slice",
    "Ctrl+Wheel": "zoom",
    "Middle drag": "window: across its width, up and down its level",
    "Ctrl+Z Ctrl+Shift+Z": "undo, redo: strokes, copies and whole masks",
    "1 2 3 4": "napari's eraser, brush, polygon, fill",
    "[ ]": "napari's brush size",
}
