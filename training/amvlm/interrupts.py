"""A Ctrl-C that came before a job listened for it: one that falls into a library's callback is lost there."""

from __future__ import annotations

import signal
from types import FrameType

interrupted = False


def remember(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT as Python does, and keep that it came."""
    global interrupted
    interrupted = True
    signal.default_int_handler(number, frame)
