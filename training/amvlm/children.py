"""How this program starts Python again: nothing in a working directory or in the environment is imported.

``python -m`` puts the working directory first on the path, and ``PYTHONPATH`` comes next; a study or a folder of scans
that holds a ``typer.py`` would run it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import platformdirs

_KEPT = ("PYTHONUTF8", "PYTHONIOENCODING", "PYTHONHASHSEED", "PYTHONNOUSERSITE", "PYTHONUSERBASE",
         "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")  # fmt: skip
"""What names no code: the encoding and the like, and where ``pip install --user`` has put packages."""


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this environment, and none of the working directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """This environment without ``PYTHONPATH``, ``PYTHONSTARTUP`` and their like, for grandchildren too.

    Warnings are off: they print the path of the module that warns, and the output of a run is kept in the study.
    """
    kept = {n: v for n, v in os.environ.items() if not n.upper().startswith("PYTHON") or n.upper() in _KEPT}
    return kept | {"PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore"}


def neutral_folder() -> Path:
    """A private empty folder of this user to start programs in: no study, no folder of scans.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    folder = Path(platformdirs.user_data_dir("napari-amvlm", appauthor=False)).absolute() / "start"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
