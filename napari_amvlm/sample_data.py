"""Sample data contribution: File ▸ Open Sample opens volume, layers and panel, on a copy in a user folder."""

from __future__ import annotations

from typing import Any


def open_sample() -> list[tuple[Any, dict[str, Any], str]]:
    """Open the hippocampus study in the current viewer; the controller adds the layers itself."""
    import napari

    viewer = napari.current_viewer()
    if viewer is None:
        return []
    _, widget = viewer.window.add_plugin_dock_widget("napari-amvlm", "Segment with text")
    widget.controller.open_sample()
    return []
