"""Sample data contribution: File ▸ Open Sample opens volume, layers and panel, on a copy in a user folder."""

from __future__ import annotations

from typing import Any

from napari_amvlm.layers import PLACEHOLDER


def open_sample() -> list[tuple[Any, dict[str, Any], str]]:
    """Open the hippocampus study in the current viewer.

    The scan returned is what napari shows until the controller has put its own layers in that scan's place.
    """
    import napari

    from amvlm.sample.study import first_scan
    from napari_amvlm.reader import read

    ((array, options, kind),) = read(str(first_scan()))
    options["metadata"][PLACEHOLDER] = True
    viewer = napari.current_viewer()
    if viewer is not None:
        _, widget = viewer.window.add_plugin_dock_widget("napari-amvlm", "Segment with text")
        widget.controller.studies.open_sample()
    return [(array, options, kind)]
