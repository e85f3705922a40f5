"""Segment with text: study, prompt, masks, and the four judgements."""

from __future__ import annotations

import math

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)
from superqt import QLabeledDoubleSlider

from napari_amvlm.panels.parts import Panel, button, small

MASK_COLOURS = ("#2fb5d2", "#f2a93b", "#e0457b")
STARTS = (("Merged mask", "merged"), ("Text mask", "Text mask"), ("Prediction", "Prediction"), ("Empty", "empty"))


class PromptEdit(QPlainTextEdit):
    """Enter runs, Shift+Enter makes a new line, Ctrl+Up and Ctrl+Down walk the history."""

    submitted = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._history: list[str] = []
        self._position = 0
        self.setPlaceholderText("What to outline, for example: anterior hippocampus")
        self.setToolTip(
            "Enter runs · Shift+Enter new line · Ctrl+↑/↓ earlier prompts. Left and right are the patient's."
        )
        self.setFixedHeight(3 * self.fontMetrics().lineSpacing() + 10)
        self.setTabChangesFocus(True)
        self.setStyleSheet("QPlainTextEdit { background: #1b1d23; border: 1px solid #5a626c; border-radius: 3px; }")

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        control = bool(event.modifiers() & Qt.KeyboardModifier.ControlModifier)
        if enter and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self.submit()
        elif control and event.key() in (Qt.Key.Key_Up, Qt.Key.Key_Down):
            self._walk(-1 if event.key() == Qt.Key.Key_Up else 1)
        else:
            super().keyPressEvent(event)

    def submit(self) -> None:
        """Emit the text and remember it."""
        text = self.toPlainText()
        if text.strip() and (not self._history or self._history[-1] != text):
            self._history.append(text)
        self._position = len(self._history)
        self.submitted.emit(text)

    def _walk(self, step: int) -> None:
        if self._history:
            self._position = min(max(self._position + step, 0), len(self._history) - 1)
            self.setPlainText(self._history[self._position])


class PromptPanel(Panel):
    """The panel *Segment with text*. Signals name what the person did."""

    open_scan_requested = Signal()
    open_study_requested = Signal()
    new_study_requested = Signal()
    add_scans_requested = Signal()
    export_requested = Signal()
    sample_requested = Signal()
    case_chosen = Signal(str)
    structure_chosen = Signal(str)
    new_structure_requested = Signal()
    prompt_submitted = Signal(str)
    cancel_requested = Signal()
    model_chosen = Signal(str)
    threshold_changed = Signal(float)
    threshold_released = Signal()
    start_requested = Signal(str)
    view_chosen = Signal(bool)
    accepted = Signal()
    absent_marked = Signal()
    skipped = Signal()
    label_undone = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.column.setSpacing(8)
        for part in (self._files(), self._hint(), self._study(), self._prompting(), self._masks(), self._judging()):
            part.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
            self.column.addWidget(part)
        for combo in self.body.findChildren(QComboBox):
            combo.installEventFilter(self)
            combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            combo.setMinimumContentsLength(8)
        self.finish(340)
        self.show_nothing_open()

    # -- building ---------------------------------------------------------------------------------------------

    def _files(self) -> QWidget:
        row = QWidget()
        layout = QHBoxLayout(row)
        layout.setContentsMargins(0, 0, 0, 0)
        scan = button("Open scan…", "Look at one scan without a study", self.open_scan_requested.emit)
        study = QPushButton("Study")
        study.setToolTip("Open or make a study, add scans, export labels")
        menu = QMenu(study)
        menu.addAction("Open study…", self.open_study_requested.emit)
        menu.addAction("New study from a folder of scans…", self.new_study_requested.emit)
        self._add_action = menu.addAction("Add scans…", self.add_scans_requested.emit)
        self._export_action = menu.addAction("Export labels…", self.export_requested.emit)
        menu.addSeparator()
        menu.addAction("Hippocampus sample", self.sample_requested.emit)
        study.setMenu(menu)
        layout.addWidget(scan, 1)
        layout.addWidget(study, 1)
        return row

    def _hint(self) -> QWidget:
        self._notice = QLabel()
        self._notice.setWordWrap(True)
        self._notice.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        return self._notice

    def _study(self) -> QWidget:
        self._study_box = QWidget()
        form = _form(self._study_box)
        self.case = QComboBox()
        self.case.setToolTip("Cases of the study; J opens the next unlabelled one")
        self.case.activated.connect(lambda _: self.case_chosen.emit(self.case.currentData()))
        self._progress_label = small("")
        form.addRow("Case", self.case)
        form.addRow("", self._progress_label)
        self.structure = QComboBox()
        self.structure.setToolTip("The structure that the label belongs to")
        self.structure.activated.connect(lambda _: self.structure_chosen.emit(self.structure.currentText()))
        row = QHBoxLayout()
        row.addWidget(self.structure, 1)
        row.addWidget(button("New…", "Add a structure to the study", self.new_structure_requested.emit))
        form.addRow("Structure", row)
        return self._study_box

    def _prompting(self) -> QWidget:
        self._prompt_box = QWidget()
        layout = QVBoxLayout(self._prompt_box)
        layout.setContentsMargins(0, 0, 0, 0)
        self.prompt = PromptEdit()
        self.prompt.submitted.connect(self.prompt_submitted)
        layout.addWidget(self.prompt)
        row = QHBoxLayout()
        self.model = QComboBox()
        self.model.setToolTip("The model that reads the prompt and predicts")
        self.model.activated.connect(lambda _: self.model_chosen.emit(self.model.currentText()))
        self._run = button("Run", "Run the prompt (Enter)", self.prompt.submit)
        row.addWidget(QLabel("Model"))
        row.addWidget(self.model, 1)
        row.addWidget(self._run)
        layout.addLayout(row)
        row = QHBoxLayout()
        self.progress = QProgressBar()
        self.progress.setTextVisible(True)
        self._cancel = button("Cancel", "Stop at once; what is there stays", self.cancel_requested.emit)
        row.addWidget(self.progress, 1)
        row.addWidget(self._cancel)
        layout.addLayout(row)
        return self._prompt_box

    def _masks(self) -> QWidget:
        self._mask_box = QWidget()
        form = _form(self._mask_box)
        self.threshold = QLabeledDoubleSlider(Qt.Orientation.Horizontal)
        self.threshold.setRange(0.05, 0.95)
        self.threshold.setValue(0.5)
        self.threshold.setToolTip("Probability from which a voxel belongs to a mask; never changes a label you touched")
        self.threshold.valueChanged.connect(self.threshold_changed)
        self.threshold.sliderReleased.connect(self.threshold_released)
        form.addRow("Threshold", self.threshold)
        self._measures = QLabel()
        self._measures.setWordWrap(True)
        self._measures.setToolTip("Volumes and agreement (Dice) of the three masks over the whole scan")
        form.addRow(self._measures)
        self.start = QComboBox()
        for text, source in STARTS:
            self.start.addItem(text, source)
        self.start.setToolTip("What your label starts from")
        row = QHBoxLayout()
        row.addWidget(self.start, 1)
        again = button("Start over", "Put this mask into your label (can be undone)", self._emit_start)
        row.addWidget(again)
        form.addRow("Label from", row)
        row = QHBoxLayout()
        row.addWidget(button("Side by side", "Three linked views", lambda: self.view_chosen.emit(True)))
        row.addWidget(button("Stacked", "All masks on one image", lambda: self.view_chosen.emit(False)))
        form.addRow("View", row)
        return self._mask_box

    def _judging(self) -> QWidget:
        self._judge_box = QWidget()
        grid = QGridLayout(self._judge_box)
        grid.setContentsMargins(0, 4, 0, 0)
        self._state = QLabel()
        self._state.setWordWrap(True)
        grid.addWidget(self._state, 0, 0, 1, 3)
        self.accept_button = button("Accept  (A)", "The whole volume is judged: keep your label", self.accepted.emit)
        self.accept_button.setStyleSheet("QPushButton { font-weight: bold; }")
        grid.addWidget(self.accept_button, 1, 0, 1, 3)
        absent = button("Absent (N)", "The structure is not in this scan", self.absent_marked.emit)
        skip = button("Skip (K)", "Leave it unjudged and go on", self.skipped.emit)
        undo = button("Undo (U)", "Go back to the judgement before; nothing is deleted", self.label_undone.emit)
        for column, judgement in enumerate((absent, skip, undo)):
            grid.addWidget(judgement, 2, column)
        return self._judge_box

    def _emit_start(self) -> None:
        self.start_requested.emit(self.start.currentData())

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """The wheel scrolls the panel; it does not change a list that happens to lie under it."""
        if event.type() == QEvent.Type.Wheel and isinstance(watched, QComboBox) and not watched.hasFocus():
            event.ignore()
            return True
        return bool(super().eventFilter(watched, event))

    # -- showing ----------------------------------------------------------------------------------------------

    def show_nothing_open(self) -> None:
        """An empty panel says what to do next."""
        self.show_notice(
            "Open a scan, or a study to keep labels.\n"
            "New here? Study ▸ Hippocampus sample opens forty scans with a model."
        )
        for box in (self._study_box, self._prompt_box, self._mask_box, self._judge_box):
            box.setVisible(False)
        self._add_action.setEnabled(False)
        self._export_action.setEnabled(False)

    def show_open(self, in_study: bool) -> None:
        """Show what applies to an open scan; judging needs a study."""
        for box in (self._prompt_box, self._mask_box):
            box.setVisible(True)
        for box in (self._study_box, self._judge_box):
            box.setVisible(in_study)
        self._add_action.setEnabled(in_study)
        self._export_action.setEnabled(in_study)

    def show_notice(self, text: str, warning: bool = False) -> None:
        """One sentence above the form; empty hides it."""
        self._notice.setText(text)
        self._notice.setVisible(bool(text))
        self._notice.setStyleSheet("QLabel { color: #f2a93b; }" if warning else "")

    def show_cases(self, cases: list[tuple[str, str]], current: str, labelled: int) -> None:
        """Fill the list of (case id, title)."""
        self.case.clear()
        for case_id, title in cases:
            self.case.addItem(title, case_id)
        self.case.setCurrentIndex(max(0, self.case.findData(current)))
        self._progress_label.setText(f"{labelled} of {len(cases)} judged for this structure")

    def show_structures(self, names: list[str], current: str) -> None:
        self.structure.clear()
        self.structure.addItems(names)
        self.structure.setCurrentText(current)

    def suggest_prompt(self, prompts: dict[str, str], structure: str) -> None:
        """Offer the structure's wording, unless the person typed something of their own."""
        typed = self.prompt.toPlainText().strip()
        if structure in prompts and (not typed or typed in prompts.values()):
            self.prompt.setPlainText(prompts[structure])

    def show_models(self, names: list[tuple[str, str]], current: str) -> None:
        """Fill the list of (name, what it knows)."""
        self.model.clear()
        for name, known in names:
            self.model.addItem(name)
            self.model.setItemData(self.model.count() - 1, f"Knows: {known}", Qt.ItemDataRole.ToolTipRole)
        self.model.setCurrentText(current)

    def show_progress(self, done: int, total: int, text: str) -> None:
        """A bar while something runs; ``total`` 0 is an unknown length."""
        self.progress.setRange(0, total)
        self.progress.setValue(done)
        self.progress.setFormat(text)
        self.progress.setVisible(True)
        self._cancel.setVisible(True)

    def show_idle(self) -> None:
        self.progress.setVisible(False)
        self._cancel.setVisible(False)

    def show_measures(self, volumes_ml: tuple[float, float, float], text_prediction: float, label_text: float) -> None:
        """Volumes of text mask, prediction and label in ml, and two Dice (NaN is a dash)."""
        names = zip(("Text mask", "Prediction", "Your label"), MASK_COLOURS, volumes_ml, strict=True)
        cells = "".join(
            f"<td style='padding-right:14px'><span style='color:{colour}'>{name}</span><br><b>{ml:.2f}</b> ml</td>"
            for name, colour, ml in names
        )
        self._measures.setText(
            f"<table><tr>{cells}</tr></table>Dice: text–prediction <b>{_dice(text_prediction)}</b>, "
            f"label–text <b>{_dice(label_text)}</b>"
        )

    def show_state(self, text: str) -> None:
        self._state.setText(text)

    def enable_judging(self, on: bool) -> None:
        """No judgement while a job for this case runs."""
        for each in self._judge_box.findChildren(QPushButton):
            each.setEnabled(on)


def _dice(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _form(box: QWidget) -> QFormLayout:
    form = QFormLayout(box)
    form.setContentsMargins(0, 0, 0, 0)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return form
