"""Where one trial happens: a folder with canaries round it, the commands run in it, and the checks of every trial."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_classes import forks
from fault_classes.forks import Answer

SECRET = b"TOP-SECRET-9f3a71c2 of another folder. "
PERSON = "Mueller^Hans"
"""Part of the path of every trial: no command may print, keep or write it."""
_LEAKS = re.compile(
    r"Traceback \(most recent|Errno|<class '|NoneType|object at 0x|site-packages|File \"|an unexpected \w+"
)
_NAMES_FILE = re.compile(r"data/napari-amvlm/(start|secret|names-[0-9a-f]{32}\.jsonl?)")


def tree(folder: Path, without: tuple[Path, ...] = ()) -> dict[str, str]:
    """Every entry below a folder: its kind, and of regular files the hash."""
    found: dict[str, str] = {}
    for parent, folders, files in os.walk(folder):
        if any(Path(parent).is_relative_to(path) for path in without):
            folders.clear()
            continue
        for name in [*folders, *files]:
            path = Path(parent, name)
            if any(path.is_relative_to(other) for other in without):
                continue
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                content = "link " + os.readlink(path)
            elif stat.S_ISREG(mode) and path.lstat().st_size > 2**26:
                content = f"{path.lstat().st_size} {path.lstat().st_mtime_ns}"  # sparse and huge: time enough lost
            elif stat.S_ISREG(mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                content = str(stat.S_IFMT(mode))
            found[os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")] = content
    return found


def unpacked(path: Path) -> bytes:
    """A file's bytes and, of compressed ones and pictures, what they unfold to (64 MB at most)."""
    with path.open("rb") as stream:
        content = stream.read(2**28)  # sparse ones are longer than memory
    if content[:2] == b"\x1f\x8b":
        try:
            return content + zlib.decompressobj(31).decompress(content, 2**26)
        except zlib.error:
            return content
    if content[:4] in (b"\x89PNG", b"II*\0", b"RIFF"):
        from PIL import Image

        try:
            with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
                return content + picture.tobytes()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return content
    return content


class Place:
    """One trial's folder.

    Attributes
    ----------
    work : Path
        Where commands run and bad input is made.
    outside : Path
        Beside it: files that nothing may read or change. ``secret.raw`` and ``secret.nii.gz`` hold :data:`SECRET`.
    faults : list of (kind, text)
        Kinds: ``answer``, ``outside``, ``changed``, ``verify``, ``cost``.
    study_is_damaged : bool
        The trial damaged the study itself, so ``verify`` is not asked in the end.
    path_was_typed : bool
        The person, or the stranger's file, named a whole path: it may be said back.
    leftovers_are_fair : bool
        The command was killed or the disk was full: ``verify`` may name leftovers, and ``--clean`` removes them.
    """

    def __init__(self, folder: Path, template: Callable[[str], Path]) -> None:
        self.folder = folder / PERSON
        self.work, self.outside, self.home = (self.folder / name for name in ("work", "outside", "home"))
        for path in (self.work, self.outside / "keep", self.home / "data", self.folder / "tmp"):
            path.mkdir(parents=True)
        (self.outside / "secret.raw").write_bytes(SECRET * 120)
        (self.outside / "keep" / "diary.txt").write_bytes(b"not yours")
        from fault_classes.makers import nifti_of_secret

        (self.outside / "secret.nii.gz").write_bytes(gzip.compress(nifti_of_secret(SECRET), mtime=0))
        self.faults: list[tuple[str, str]] = []
        self.answers: list[Answer] = []
        self.study_is_damaged = self.leftovers_are_fair = self.path_was_typed = False
        self.exit_codes = (0, 1, 2)
        self.afterwards: list[Callable[[], object]] = []
        self.memory_mb, self.seconds = 1500.0, 60.0
        self.template, self._started = template, 0
        self._allowed: list[Path] = [self.home, self.folder / "tmp", self.work / "study" / "cache"]
        self._before: dict[str, str] | None = None

    # -- setting up -----------------------------------------------------------------------------------

    def study(self, kind: str = "plain", name: str = "study") -> Path:
        """A copy of a study made once: ``plain`` (six cases), ``trained`` (with a model and a run), ``sample``."""
        path = self.work / name
        shutil.copytree(self.template(kind), path, symlinks=True)
        return path

    def resolved(self, name: str) -> str:
        """A hostile name with OUTSIDE replaced by the path of the folder with the canaries."""
        self.path_was_typed |= "OUTSIDE" in name
        return name.replace("OUTSIDE", str(self.outside))

    def allow(self, *paths: Path) -> None:
        """What the person named: it may change."""
        self._allowed += paths

    def new_study(self) -> Path:
        """The name of a study that an import may make."""
        self.allow(self.work / "new")
        return self.work / "new"

    # -- acting ---------------------------------------------------------------------------------------

    def run(self, *arguments: object, **more: Any) -> Answer:
        """Run a command; whatever it does, it may not crash, hang, tell a path or speak Python."""
        if self._before is None:
            self._before = tree(self.folder, tuple(self._allowed))
        self._started += 1
        seconds = more.pop("seconds", self.seconds)
        answer = forks.in_fork(
            [str(argument) for argument in arguments], self.folder / "tmp" / f"output{self._started}",
            cwd=more.pop("cwd", self.work), environment={**self.environment(), **more.pop("environment", {})},
            seconds=seconds, **more,
        )  # fmt: skip
        return self._judged(answer, str(arguments[0]))

    def fresh(self, command: list[str], **more: Any) -> Answer:
        """The same with an interpreter of its own."""
        if self._before is None:
            self._before = tree(self.folder, tuple(self._allowed))
        environment = {**self.environment(), **more.pop("environment", {})}
        answer = forks.in_fresh_process(command, cwd=more.pop("cwd", self.work), environment=environment, **more)
        return self._judged(answer, Path(command[0]).name)

    def amvlm(self, *arguments: object, **more: Any) -> Answer:
        """``python -m amvlm`` with an interpreter of its own."""
        return self.fresh([sys.executable, "-m", "amvlm", *map(str, arguments)], **more)

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home), "XDG_DATA_HOME": str(self.home / "data"), "TMPDIR": str(self.folder / "tmp"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
        }  # fmt: skip

    def _judged(self, answer: Answer, what: str) -> Answer:
        self.answers.append(answer)
        last = " ".join(answer.err.strip().splitlines()[-1:])[-160:]
        if answer.hung:
            self.fault("answer", f"{what} did not end in {answer.seconds:.0f} s")
        elif answer.code < 0 and answer.code not in self.exit_codes:
            self.fault("answer", f"{what} died of signal {-answer.code}")
        elif leak := _LEAKS.search(answer.text):
            self.fault("answer", f"{what} speaks Python ({leak.group()!r}): {last}")
        elif answer.code not in self.exit_codes:
            self.fault("answer", f"{what} ended with exit code {answer.code}: {last}")
        elif answer.code > 0 and not _is_sentence(answer):
            self.fault("answer", f"{what} ended with exit code {answer.code} and no sentence: {last}")
        if PERSON in answer.text and not self.path_was_typed:
            self.fault("answer", f"{what} tells a path: {last}")
        if SECRET.decode() in answer.text:
            self.fault("outside", f"{what} prints what another folder holds")
        if answer.peak_mb > self.memory_mb:
            self.fault("cost", f"{what} took {answer.peak_mb:,.0f} MB")
        return answer

    def refused(self, *arguments: object, **more: Any) -> Answer:
        """The command must end with exit code 2 and a sentence."""
        answer = self.run(*arguments, **more)
        if answer.code in (0, 1) and not self.faults:
            self.fault(
                "answer", f"{arguments[0]} was not refused (exit code {answer.code}): {answer.text.strip()[-160:]}"
            )
        return answer

    def fine(self, *arguments: object, **more: Any) -> Answer:
        """The command must succeed."""
        answer = self.run(*arguments, **more)
        if answer.code and not self.faults:
            self.fault("answer", f"{arguments[0]} ended with exit code {answer.code}: {answer.text.strip()[-160:]}")
        return answer

    # -- judging --------------------------------------------------------------------------------------

    def fault(self, kind: str, text: str) -> None:
        self.faults.append((kind, text.replace(str(self.folder), "…")))

    def expect(self, fact: object, text: str, kind: str = "answer") -> None:
        """Note a fault unless ``fact`` holds."""
        if not fact:
            self.fault(kind, text)

    def expect_named(self, answer: Answer, *names: str) -> None:
        """The report must account for these files by name."""
        for name in names:
            self.expect(name in answer.text, f"{name} is not named: {answer.text.strip()[-160:]}")

    def conclude(self) -> None:
        """What is checked after every trial: canaries, study, secrets, the private folder, and ``verify``."""
        if self._before is not None:
            after = tree(self.folder, tuple(self._allowed))
            different = [name for name in sorted(self._before.keys() | after.keys())
                         if self._before.get(name) != after.get(name)
                         and not any((self.folder / name).is_relative_to(path) for path in self._allowed)]  # fmt: skip
            for name in sorted(different, key=lambda name: name in self._before)[-6:]:
                happened = "gone" if name not in after else "new" if name not in self._before else "changed"
                self.fault("changed" if name.startswith("work/study") else "outside", f"{name}: {happened}")
        for name in tree(self.home / "data"):
            if name != "napari-amvlm" and not _NAMES_FILE.fullmatch(f"data/{name}"):
                self.fault("outside", f"the user's data folder holds {name}")
        for name in tree(self.folder / "tmp"):
            if not name.startswith("output"):
                self.fault("outside", f"a temporary file stays: {name}")
        for folder in {self.work, *self._allowed} - {self.home, self.folder / "tmp"}:
            for path in folder.rglob("*") if folder.is_dir() and not folder.is_symlink() else [folder]:
                if path.is_file() and not path.is_symlink() and SECRET in unpacked(path):
                    self.fault("outside", f"{path.name} holds what another folder held")
        for name in ("study", "new"):
            if (self.work / name / "store.sqlite").is_file() and not self.study_is_damaged:
                self._verify(self.work / name)

    def _verify(self, study: Path) -> None:
        answer = self.run("verify", study)
        if self.leftovers_are_fair and "leftover" in answer.out and not answer.code:
            self.run("verify", study, "--clean")
            answer = self.run("verify", study)
        if answer.code or not re.search(r"\b0 damaged", answer.out) or "leftover" in answer.out:
            self.fault("verify", f"verify of {study.name}: {answer.text.strip()[-160:]}")

    # -- less usual surroundings ----------------------------------------------------------------------

    def small_disk(self, path: Path, kilobytes: int) -> Path:
        """A disk of this size at ``path``; the kernel must let us mount one."""
        path.mkdir(parents=True, exist_ok=True)
        size = f"size={kilobytes}k"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(path)], check=True, capture_output=True)
        self.afterwards.append(lambda: subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True))
        return path

    def open_to_all(self) -> None:
        """Let the user nobody reach and change everything here, so that permissions mean something to root's tests."""
        for path in (self.folder.parent, self.folder, *self.folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o777 if path.is_dir() else 0o666)

    @staticmethod
    def as_nobody() -> None:
        """``prepare`` of a command that runs as another user."""
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)


def _is_sentence(answer: Answer) -> bool:
    """The last line is ours or the command line's own usage; or, of verify, damage is listed."""
    lines = answer.err.strip().splitlines()
    if lines and lines[-1].startswith("amvlm: ") and (len(lines[-1]) > 30 or answer.code == 130):
        return True
    return "Usage: " in answer.err or "damage" in answer.out
