"""Opening scans and studies, importing and exporting: what the dialogs ask and what happens then."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from napari.utils.notifications import show_info
from qtpy.QtWidgets import QFileDialog, QInputDialog

from amvlm.errors import ChoiceNeeded
from amvlm.store import LabelStore

if TYPE_CHECKING:
    from napari_amvlm.controller import Controller

_PATTERNS = ("nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd", "dcm", "dicom", "ima", "png", "tif", "tiff", "webp", "jpg")
SCANS = f"Scans ({' '.join(f'*.{suffix}' for suffix in _PATTERNS)});;All files (*)"
EXPORTS = {"NIfTI (.nii.gz)": ".nii.gz", "NRRD (.nrrd)": ".nrrd", "MetaImage (.mha)": ".mha", "DICOM SEG": ".dcm"}


class Studies:
    """Files and folders of one viewer."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

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

    def ask_for_new_study(self) -> None:
        source = QFileDialog.getExistingDirectory(None, "Folder of scans (files, or DICOM folders)")
        into = QFileDialog.getSaveFileName(None, "Name of the new study", "study")[0] if source else ""
        if into:
            self.import_scans(Path(source), Path(into))

    def ask_for_more_scans(self) -> None:
        source = QFileDialog.getExistingDirectory(None, "Folder of scans (files, or DICOM folders)")
        if source and self._controller.store is not None:
            self.import_scans(Path(source), self._controller.store.folder)

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
        name, chosen = QInputDialog.getText(None, "New structure", "Name of the structure, for example: liver")
        if chosen and self._controller.store is not None:
            self._controller.structures.add(name)

    def ask_which(self, path: Path, question: ChoiceNeeded, answered: dict[str, int]) -> None:
        """A folder of several series, or a file of several volumes: the person picks one."""
        words = f"{path.name}: {question.what}. Which one?"
        chosen, sure = QInputDialog.getItem(None, f"Choose a {question.kind}", words, question.choices, 0, False)
        if sure:
            number = question.choices.index(chosen)
            self.open_scan(path, **answered, **{{"series": "series", "volume": "volume_index"}[question.kind]: number})

    # -- doing ------------------------------------------------------------------------------------------------

    def open_scan(self, path: Path, **answered: int) -> None:
        """Show one scan that is in no study: prompts work, labels are not kept."""
        controller = self._controller

        def which(question: ChoiceNeeded) -> None:
            if controller.panel is not None:
                controller.panel.show_idle()
            self.ask_which(path, question, answered)

        controller.submit(
            lambda: controller.engine.open_scan(path, **answered), on_result=controller.show_case, text="Opening …",
            on_choice=which,
        )  # fmt: skip

    def open_study(self, folder: Path) -> None:
        """Open a study and its first unjudged case."""
        controller = self._controller
        store = controller.guard(lambda: LabelStore(folder))
        if store is None:
            return
        controller.leave_case()  # into its own study, before another one takes its place
        if controller.layers is not None:
            controller.layers.remove()
            controller.layers = None
        controller.store = store
        names = [structure.name for structure in store.structures()]
        controller.structure = controller.structure if controller.structure in names else (names[0] if names else "")
        controller.refresh_lists()
        controller.training.study_changed()
        controller.reviewing.study_changed()
        cases = store.cases()
        if cases:
            controller.open_case(controller.reviewing.next_to_judge() or cases[0].case_id)

    def open_sample(self) -> None:
        """Open the sample study on this user's own copy, made at the first call."""
        folder = Path(platformdirs.user_data_dir("napari-amvlm", appauthor=False)) / "sample-study"
        engine = self._controller.engine

        def prepare() -> Path:
            from amvlm.sample import copy_sample_study

            if not (folder / "store.sqlite").is_file():
                copy_sample_study(folder)
            return folder

        self._controller.submit(lambda: engine.call(prepare), on_result=self.open_study, text="Preparing the sample …")

    def import_scans(self, source: Path, into: Path) -> None:
        """Copy a folder of scans into a study, new or old, and open it."""

        def work() -> str:
            from amvlm.exchange import import_study

            report = import_study(source, into)
            return " ".join([report.sentence(), *report.refused[:3]])

        def done(sentence: str) -> None:
            show_info(sentence)
            self.open_study(into)

        self._controller.submit(lambda: self._controller.engine.call(work), on_result=done, text="Importing …")

    def export_labels(self, into: Path, suffix: str = ".nii.gz", series: Path | None = None) -> None:
        """Write every accepted label into a new folder."""
        store = self._controller.store

        def work() -> int:
            from amvlm.exchange import export_dicom_seg, export_labels

            if store is None:
                return 0
            return export_labels(store, into, suffix) if series is None else export_dicom_seg(store, series, into)

        self._controller.submit(
            lambda: self._controller.engine.call(work),
            on_result=lambda n: show_info(f"{n} files of labels written to {into.name}."),
            text="Exporting …",
        )
