"""A run's curves and pictures for TensorBoard: one file, private, without the name of this machine.

TensorBoard's own writer puts the host's name and the process id into the file's name, and writes from a thread, where
a full disk is noticed late.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from amvlm.errors import UserError

FILE_NAME = "events.out.tfevents.0000000000.amvlm"
"""TensorBoard shows every file with "tfevents" in its name; a run that is resumed appends."""


class Curves:
    """Appends to the TensorBoard file of a run.

    Parameters
    ----------
    run_folder : Path
        The file lies in its folder ``tensorboard``.
    """

    def __init__(self, run_folder: Path) -> None:
        self._path = run_folder / "tensorboard" / FILE_NAME

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Append a point of a curve."""
        from torch.utils.tensorboard.summary import scalar

        self._append(scalar(name, value), step)

    def add_image(self, name: str, picture: Any, step: int) -> None:
        """Append a picture, a tensor (channels, height, width) in [0, 1]."""
        from torch.utils.tensorboard.summary import image

        self._append(image(name, picture, dataformats="CHW"), step)

    def _append(self, summary: Any, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            if self._path.parent.is_symlink():
                raise OSError(None, "it is a link")
            with open(os.open(self._path, flags, 0o600), "ab") as stream:
                writer = RecordWriter(stream)
                if stream.tell() == 0:
                    writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
                writer.write(Event(wall_time=time.time(), step=step, summary=summary).SerializeToString())
        except OSError as error:
            raise UserError(
                f"the run's curves could not be written ({error.strerror})", file=self._path.parent,
                remedy="Free disk space, then go on with --resume; the last checkpoint is kept.",
            ) from error  # fmt: skip
