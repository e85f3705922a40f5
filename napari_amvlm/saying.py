"""What napari calls itself, readers and writers, speaks in sentences too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import napari
from napari.utils.notifications import show_error

from napari_amvlm.wording import sentence, unmarked


@contextmanager
def said_in_window() -> Iterator[None]:
    """For what napari calls itself: an error is said in a sentence where a window is open, and raised in a script."""
    try:
        yield
    except Exception as error:  # napari would show its traceback
        if napari.current_viewer() is None:
            raise
        show_error(unmarked(sentence(error)))
