"""Opening scans and studies, importing and exporting: what the dialogs ask and what happens then."""

from __future__ import annotations

import itertools
import os
import secrets
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import platformdirs
from qtpy.QtWidgets import QFileDialog, QInputDialog, QMessageBox

from amvlm.errors import ChoiceNeeded, UserError
from amvlm.store import LabelStore
from amvlm.store.memory import recall, recent_studies
from napari_amvlm.panels.parts import show_list
from napari_amvlm.undoing import SETTLED
from napari_amvlm.wording import printable, unmarked

if TYPE_CHECKING:
    from napari_amvlm.controller import Controller

Masks = Literal["labels", "reference", "ignore"]
_PATTERNS = ("nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd", "dcm", "dicom", "ima", "png", "tif", "tiff", "webp", "jpg")
SCANS = f"Scans ({' '.join(f'*.{suffix}' for suffix in _PATTERNS)});;All files (*)"
EXPORTS = {"NIfTI (.nii.gz)": ".nii.gz", "NRRD (.nrrd)": ".nrrd", "MetaImage (.mha)": ".mha", "DICOM SEG": ".dcm"}
MASKS: dict[str, Masks] = {"Accepted labels: a person drew or checked them": "labels",
         "Only to measure with: never trained on": "reference",
         "Leave them out": "ignore"}  # fmt: skip
_DAMAGE = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""SQLite's codes for an index that no later try can read: tables that are missing, pages that are broken."""


class Studies:
    """Files and folders of one viewer."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.listed: Any = None

    # -- asking -----------------------------------------------------------------------------------------------

    def ask_for_scan(self) -> None:
        name, _ = QFileDialog.getOpenFileName(None, "Open scan", "", SCANS)
        if name:
            self.open_scan(Path(name))

    def ask_for_dicom_folder(self) -> None:
        if name := QFileDialog.getExistingDirectory(None, "Open DICOM folder"):
            self.open_scan(Path(name))

    def ask_for_study(self) -> None:
        if name := QFileDialog.getExistingDirectory(None, "Open study"):
            self.open_study(Path(name))

    def list_recent(self) -> None:
        """The studies that were opened before."""
        if (panel := self._controller.panel) is not None:
            here = self._controller.store.folder if self._controller.store is not None else None
            folders = [folder for folder in recent_studies() if here is None or folder != Path(os.path.abspath(here))]
            panel.show_recent([(f"{folder.name}  ({folder.parent.name})", str(folder)) for folder in folders])

    def open_recent(self, folder: str) -> None:
        self.open_study(Path(folder))

    def ask_for_new_name(self) -> None:
        """Rename the chosen structure; its labels go along."""
        controller, store, old = self._controller, self._controller.store, self._controller.structure
        if store is None or not old:
            controller.notice("There is no structure to rename.", True)
            return
        name, sure = QInputDialog.getText(None, "Rename structure", f"New name of {printable(old)}")
        new = " ".join(str(name).split())
        if sure and new and new != old:
            controller.opening.leave()
            store.rename_structure(old, new)
            controller.workspace.choose_structure(new)
            if controller.open_case_id:
                controller.open_case(controller.open_case_id)
            controller.refresh_lists()

    def ask_value(self, values: Sequence[int]) -> int | None:
        """Which value of a layer is meant, 0 for all of them; None where it was cancelled."""
        every = "all of them"
        chosen, sure = QInputDialog.getItem(
            None, "Choose a value", "The layer holds several values. Which is the structure?",
            [every, *map(str, values)], 0, False,
        )  # fmt: skip
        return None if not sure else 0 if chosen == every else int(chosen)

    def ask_for_masks(self, count: int, unnamed: bool) -> tuple[Masks, str] | None:
        """What the masks of a folder are, and what they outline where nothing says so; None where it was cancelled."""
        chosen, sure = QInputDialog.getItem(
            None, "Masks", f"{count} of these scans come with masks. What are they?", list(MASKS), 0, False
        )
        if not sure:
            return None
        kind = MASKS[chosen]
        if kind == "ignore" or not unnamed:
            return kind, ""
        name = self.ask_for_name("What do the masks outline? Name it, for example: liver")
        return (kind, name) if name else None

    def ask_for_new_study(self) -> None:
        source = QFileDialog.getExistingDirectory(None, "Folder of scans (files, or DICOM folders)")
        into = QFileDialog.getSaveFileName(None, "Name of the new study", "study")[0] if source else ""
        if into:
            self.look_and_import(Path(source), Path(into))

    def ask_for_more_scans(self) -> None:
        source = QFileDialog.getExistingDirectory(None, "Folder of scans (files, or DICOM folders)")
        if source and self._controller.store is not None:
            self.look_and_import(Path(source), self._controller.store.folder)

    def ask_for_export(self) -> None:
        """Ask for the format and a folder; DICOM SEG also needs the series that the scans came from."""
        chosen, sure = QInputDialog.getItem(None, "Export labels", "Format", list(EXPORTS), 0, False)
        series = ""
        if sure and EXPORTS[chosen] == ".dcm":
            series = QFileDialog.getExistingDirectory(None, "DICOM folder that the scans came from")
            sure = bool(series)
        into = QFileDialog.getSaveFileName(None, "New folder for the labels", "labels")[0] if sure else ""
        if into and self._controller.store is not None:
            self.export_labels(Path(into), EXPORTS[chosen], Path(series) if series else None)

    def ask_for_structure(self) -> None:
        name = self.ask_for_name("Name of the structure, for example: liver")
        if name and self._controller.store is not None:
            self._controller.structures.add(name)

    def ask_for_name(self, question: str) -> str:
        """The name that the person typed for a structure, "" where it was cancelled."""
        name, chosen = QInputDialog.getText(None, "New structure", question)
        return " ".join(str(name).split()) if chosen else ""

    def is_sure(self, question: str) -> bool:
        """Whether the person means it; Enter and Escape say no."""
        yes, no = QMessageBox.StandardButton.Yes, QMessageBox.StandardButton.No
        return QMessageBox.question(self._controller.window, "Are you sure?", unmarked(question), yes | no, no) == yes

    def agrees(self, title: str, question: str) -> bool:
        """Whether the person says yes; Enter does, Escape does not."""
        yes, no = QMessageBox.StandardButton.Yes, QMessageBox.StandardButton.No
        return QMessageBox.question(self._controller.window, title, unmarked(question), yes | no, yes) == yes

    def ask_which(self, path: Path, question: ChoiceNeeded, answered: dict[str, int]) -> None:
        """A folder of several series, or a file of several volumes: the person picks one."""
        words = unmarked(f"{question.file_name}: {question.what}. Which one?")
        choices = tuple(printable(choice) for choice in question.choices)
        if len(set(choices)) < len(choices):
            choices = tuple(f"{number}: {choice}" for number, choice in enumerate(choices, 1))
        chosen, sure = QInputDialog.getItem(None, f"Choose a {question.kind}", words, choices, 0, False)
        if sure:
            number = choices.index(chosen)
            self.open_scan(path, **answered, **{{"series": "series", "volume": "volume_index"}[question.kind]: number})

    # -- doing ------------------------------------------------------------------------------------------------

    def open_scan(self, path: Path, **answered: int) -> None:
        """Show one scan that is in no study: prompts work, labels are not kept."""
        controller = self._controller

        def which(question: ChoiceNeeded) -> None:
            self.ask_which(path, question, answered)

        controller.submit(
            lambda: controller.engine.open_scan(path, **answered), on_result=controller.opening.show, text="Opening …",
            on_choice=which,
        )  # fmt: skip

    def open_study(self, folder: Path) -> None:
        """Open a study and its first unjudged case; one that cannot be read leaves everything as it was."""
        self._controller.guard(lambda: self._open_study(folder))

    def _open_study(self, folder: Path) -> None:
        controller = self._controller
        store = LabelStore(folder)
        names, cases = [structure.name for structure in store.structures()], store.cases()
        controller.opening.leave()  # into its own study, before another one takes its place
        if controller.layers is not None:
            controller.layers.remove()
        last, wanted = recall(store.store_id), controller.structure
        chosen = next((name for name in (last.structure, wanted) if name in names), names[0] if names else "")
        controller.workspace.open_study(store, chosen)
        if controller.panel is not None:
            controller.panel.show_study_open()
        controller.notice("")
        controller.refresh_lists()
        if cases:
            known = last.case_id in [case.case_id for case in cases]
            in_work = last.case_id if known and store.state(last.case_id, chosen) not in SETTLED else ""
            controller.open_case(in_work or controller.reviewing.next_to_judge() or cases[0].case_id)

    def open_sample(self) -> None:
        """Open the sample study on this user's own copy, made at the first call."""
        controller = self._controller
        folder = Path(platformdirs.user_data_dir("napari-amvlm", appauthor=False)) / "sample-study"

        def opened(set_aside: str) -> None:
            self.open_study(folder)
            if set_aside:
                controller.warn(set_aside)

        controller.submit(
            lambda: controller.engine.call(lambda: prepare_sample(folder)), on_result=opened,
            text="Preparing the sample …",
        )  # fmt: skip

    def look_and_import(self, source: Path, into: Path) -> None:
        """Import a folder of scans; where masks come with them, ask first what these are."""

        def work() -> tuple[int, bool]:
            from amvlm.exchange.layouts import read_layout

            layout = read_layout(source, "")
            return sum(item.mask is not None for item in layout.items), list(layout.structures) == ["target"]

        def ask(found: tuple[int, bool]) -> None:
            answer: tuple[Masks, str] | None = self.ask_for_masks(*found) if found[0] else ("labels", "")
            if answer is not None:
                self.import_scans(source, into, *answer)

        self._controller.submit(
            lambda: self._controller.engine.call(work), on_result=ask, text="Looking through the folder …"
        )

    def import_scans(self, source: Path, into: Path, masks: Masks = "labels", structure: str = "") -> None:
        """Copy a folder of scans into a study, new or old, open it, and list what was left out."""
        controller = self._controller

        def progress(done: int, total: int) -> None:
            controller.worker.tell(lambda: show(done, total))

        def show(done: int, total: int) -> None:
            controller.workspace.go_on(done, total, f"Importing: {done} of {total}", token)

        def work() -> tuple[bool, str, Sequence[str]]:
            from amvlm.exchange import import_study
            from amvlm.exchange.importing import NothingImported

            try:
                report = import_study(source, into, masks=masks, structure=structure, progress=progress)
            except NothingImported as error:
                return False, str(error), error.lines
            return True, report.sentence(), report.lines()

        def done(outcome: tuple[bool, str, Sequence[str]]) -> None:
            imported, sentence, lines = outcome
            if imported:
                controller.tell(sentence)
                self.open_study(into)
            else:
                controller.fail(sentence)
            if lines:
                self.listed = show_list("What was left out of the import", sentence, lines, controller.window)

        token = controller.submit(lambda: controller.engine.call(work), on_result=done, text="Importing …")

    def export_labels(self, into: Path, suffix: str = ".nii.gz", series: Path | None = None) -> None:
        """Write every accepted label into a new folder."""
        controller, store = self._controller, self._controller.store

        def work() -> int:
            from amvlm.exchange import export_dicom_seg, export_labels

            if store is None:
                return 0
            return export_labels(store, into, suffix) if series is None else export_dicom_seg(store, series, into)

        controller.submit(
            lambda: controller.engine.call(work),
            on_result=lambda n: controller.tell(f"Exported {n} label files to {into.name}."),
            text="Exporting …",
        )


def prepare_sample(folder: Path) -> str:
    """Make the user's copy of the sample study where it is not there whole; what was in its place is set aside.

    The copy is made beside its place and renamed, so that a copy cut short is never taken for the study.

    Returns
    -------
    str
        What was set aside, as a sentence; "" in the usual case.
    """
    from amvlm.sample import copy_sample_study

    if _is_whole(folder):
        return ""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f"{folder.name}-{secrets.token_hex(4)}.part")
    copy_sample_study(beside)
    if not os.path.lexists(folder):
        beside.rename(folder)
        return ""
    names = (f"{folder.name}-old-{number}" for number in itertools.count(1))
    aside = next(name for name in names if not os.path.lexists(folder.with_name(name)))
    folder.rename(folder.with_name(aside))
    beside.rename(folder)
    return f"Your copy of the sample study was damaged or incomplete. It was kept as {aside}; a new copy was made."


def _is_whole(folder: Path) -> bool:
    """True for a study that holds every bundled scan; raises where it cannot be read though it may be sound."""
    from amvlm.sample.study import sample_splits

    if not (folder / "store.sqlite").is_file():
        return False
    try:
        return len(LabelStore(folder).cases()) >= len(sample_splits())
    except (UserError, sqlite3.Error) as error:
        cause = error if isinstance(error, sqlite3.Error) else error.__cause__
        if isinstance(cause, TypeError) or getattr(cause, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
            return False
        raise
