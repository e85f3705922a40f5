"""The studies that trials copy, each made once by the commands themselves."""

from __future__ import annotations

import os
from pathlib import Path

from fault_classes import makers
from fault_classes.forks import in_fork


class Templates:
    """``plain``: four cases to train on, two of them labelled, and two to validate. ``trained``: with a model and its
    run. ``pictures``: three 2-D images with captions. Made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "home").mkdir(parents=True)
        self._environment = {"XDG_DATA_HOME": str(folder / "home"), "HOME": str(folder / "home")}

    def __call__(self, kind: str) -> Path:
        path = self._folder / kind
        if not path.is_dir():
            os.makedirs(self._folder / f"{kind} source")
            getattr(self, f"_{kind}")(path, self._folder / f"{kind} source")
        return path

    def _run(self, *arguments: object) -> None:
        answer = in_fork([str(a) for a in arguments], self._folder / "output", cwd=self._folder,
                         environment=self._environment, seconds=300)  # fmt: skip
        if answer.code:
            raise RuntimeError(f"a template could not be made: {answer.text[-2000:]}")

    def _plain(self, path: Path, source: Path) -> None:
        train, val = makers.msd(source / "a", 4), makers.msd(source / "b", 2, first=4)
        self._run("import", train, "--into", path, "--split", "train", "--accept-fraction", "0.5")
        self._run("import", val, "--into", path, "--split", "val")

    def _trained(self, path: Path, source: Path) -> None:
        import shutil

        shutil.copytree(self("plain"), path)
        self._run("train", path, "--name", "own", "--run-name", "first", *makers.TINY)

    def _pictures(self, path: Path, source: Path) -> None:
        self._run("import", makers.pictures(source / "a"), "--into", path, "--split", "train")
