"""Segment with text: study, prompt, masks, and the four judgements."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QFormLayout,
    QGridLayout,
    QHBoxLayout,
    QMenu,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)
from superqt import QLabeledDoubleSlider

from napari_amvlm.panels.measures import Measures
from napari_amvlm.panels.parts import Notice, Panel, PlainLabel, ProgressRow, button, small, tool, wrapped
from napari_amvlm.panels.prompt_edit import PromptEdit
from napari_amvlm.wording import printable, unmarked

COPY_SOURCES = ("Text mask", "Prediction")
CORRECTIONS = (
    ("Smooth", "smooth", "Round off the outline of the whole label"),
    ("Fill holes", "fill holes", "Fill what is enclosed in each slice of this plane"),
    ("Largest part", "largest part", "Keep the largest connected part only"),
    ("Interpolate", "interpolate", "Fill the slices of this plane between painted ones"),
)
STARTS = (("Merged mask", "merged"), ("Text mask", "Text mask"), ("Prediction", "Prediction"), ("Empty", "empty"))


class PromptPanel(Panel):
    """The panel *Segment with text*. Signals name what the person did."""

    open_scan_requested = Signal()
    open_folder_requested = Signal()
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
    layer_start_requested = Signal(str)
    recent_chosen = Signal(str)
    rename_requested = Signal()
    view_chosen = Signal(bool)
    plane_chosen = Signal(str)
    window_chosen = Signal(str)
    copy_brush_chosen = Signal(str)
    box_tool_chosen = Signal(bool)
    correction_requested = Signal(str)
    offer_taken = Signal()
    keys_requested = Signal()
    left = Signal()
    accepted = Signal()
    absent_marked = Signal()
    skipped = Signal()
    label_undone = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.column.setSpacing(8)
        self._row = ProgressRow("Cancel now; finished slices are kept", self.cancel_requested.emit)
        self.progress, self.show_progress, self.show_idle = self._row.bar, self._row.show_progress, self._row.show_idle
        parts = (
            self._files(), self._row, self._hint(), self._study(), self._prompting(), self._looking(), self._masks(),
            self._correcting(),
        )  # fmt: skip
        self.pin(self._judging())
        for part in parts:
            if part is not self._row:
                part.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
            self.column.addWidget(part)
        for combo in self.body.findChildren(QComboBox):
            combo.installEventFilter(self)
            combo.activated.connect(lambda _: self.left.emit())  # else the next key would choose from the list
            combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            combo.setMinimumContentsLength(8)
        self.finish(340)
        self.show_nothing_open()

    # -- building ---------------------------------------------------------------------------------------------

    def _files(self) -> QWidget:
        row = QWidget()
        layout = QHBoxLayout(row)
        layout.setContentsMargins(0, 0, 0, 0)
        scan = QPushButton("Open scan")
        scan.setToolTip("Look at one scan without a study")
        kinds = QMenu(scan)
        kinds.addAction("File… (NIfTI, NRRD, MHA, DICOM, picture)", self.open_scan_requested.emit)
        kinds.addAction("DICOM folder…", self.open_folder_requested.emit)
        scan.setMenu(kinds)
        study = QPushButton("Study")
        study.setToolTip("Open or make a study, add scans, export labels")
        menu = QMenu(study)
        menu.addAction("Open study…", self.open_study_requested.emit)
        menu.addAction("New study from a folder of scans…", self.new_study_requested.emit)
        self._recent = menu.addMenu("Recent studies")
        self._add_action = menu.addAction("Add scans…", self.add_scans_requested.emit)
        self._export_action = menu.addAction("Export labels…", self.export_requested.emit)
        self._rename_action = menu.addAction("Rename structure…", self.rename_requested.emit)
        menu.addSeparator()
        menu.addAction("Hippocampus sample", self.sample_requested.emit)
        study.setMenu(menu)
        layout.addWidget(scan, 1)
        layout.addWidget(study, 1)
        layout.addWidget(tool("?", "Keys and mouse (?)", self.keys_requested.emit))
        return row

    def _hint(self) -> QWidget:
        box = QWidget()
        layout = QVBoxLayout(box)
        layout.setContentsMargins(0, 0, 0, 0)
        self._next = wrapped()
        layout.addWidget(self._next)
        layout.addWidget(self._notice_label())
        self._offer = QWidget()
        row = QHBoxLayout(self._offer)
        row.setContentsMargins(0, 0, 0, 0)
        self._offer_text = small("")
        self._take = button("", "Do this", self._emit_offer)
        row.addWidget(self._offer_text, 1)
        row.addWidget(self._take)
        self._offer.setVisible(False)
        layout.addWidget(self._offer)
        return box

    def _emit_offer(self) -> None:
        self._offer.setVisible(False)
        self.offer_taken.emit()

    def _notice_label(self) -> Notice:
        self._notice = Notice()
        return self._notice

    def _study(self) -> QWidget:
        self._study_box = QWidget()
        form = _form(self._study_box)
        self.case = QComboBox()
        self.case.setToolTip("Cases of the study; J opens the next unlabelled one")
        self.case.activated.connect(lambda _: self.case_chosen.emit(self.case.currentData()))
        self._progress_label, self._reports = small(""), small("")
        form.addRow("Case", self.case)
        form.addRow("", self._progress_label)
        form.addRow("Report", self._reports)
        self._reports_row = form.labelForField(self._reports)
        self.show_reports(())
        self.structure = QComboBox()
        self.structure.setToolTip("The structure that the label belongs to")
        self.structure.activated.connect(lambda _: self.structure_chosen.emit(self.structure.currentData()))
        row = QHBoxLayout()
        row.addWidget(self.structure, 1)
        row.addWidget(button("New…", "Add a structure to the study", self.new_structure_requested.emit))
        form.addRow("Structure", row)
        return self._study_box

    def _prompting(self) -> QWidget:
        self._prompt_box = QWidget()
        self._prompt_box.setToolTip("")
        layout = QVBoxLayout(self._prompt_box)
        layout.setContentsMargins(0, 0, 0, 0)
        self.prompt = PromptEdit()
        self.prompt.submitted.connect(self.prompt_submitted)
        self.prompt.left.connect(self.left)
        layout.addWidget(self.prompt)
        row = QHBoxLayout()
        self.model = QComboBox()
        self.model.setToolTip("The model that reads the prompt and predicts")
        self.model.activated.connect(lambda _: self.model_chosen.emit(self.model.currentData()))
        self._run = button("Run", "Run the prompt (Enter)", self.prompt.submit)
        row.addWidget(PlainLabel("Model"))
        row.addWidget(self.model, 1)
        row.addWidget(self._run)
        layout.addLayout(row)
        return self._prompt_box

    def _looking(self) -> QWidget:
        self._view_box = QWidget()
        layout = QVBoxLayout(self._view_box)
        layout.setContentsMargins(0, 0, 0, 0)
        row = QHBoxLayout()
        self.planes = [
            tool(name, f"Show the {name.lower()} plane (Q: next)", partial(self.plane_chosen.emit, name))
            for name in ("Axial", "Coronal", "Sagittal")
        ]
        for each in self.planes:
            row.addWidget(each)
        row.addStretch()
        row.addWidget(tool("◫", "Three linked views (G)", lambda: self.view_chosen.emit(True)))
        row.addWidget(tool("▣", "All masks on one image (G)", lambda: self.view_chosen.emit(False)))
        layout.addLayout(row)
        row = QHBoxLayout()
        self._levels = PlainLabel()
        self._levels.setToolTip("Level and width of what is shown from black to white")
        self.windows = QComboBox()
        self.windows.setToolTip("Window (W: next); or drag with the middle mouse button")
        self.windows.activated.connect(lambda _: self.window_chosen.emit(self.windows.currentText()))
        row.addWidget(PlainLabel("Window"))
        row.addWidget(self.windows, 1)
        row.addWidget(self._levels)
        layout.addLayout(row)
        return self._view_box

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
        self._measures = Measures()
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
        return self._mask_box

    def _correcting(self) -> QWidget:
        self._correct_box = QWidget()
        layout = QVBoxLayout(self._correct_box)
        layout.setContentsMargins(0, 0, 0, 0)
        row = QHBoxLayout()
        row.addWidget(PlainLabel("Brush takes"))
        self._brushes = QButtonGroup(self)
        self._brushes.setExclusive(False)
        for name in COPY_SOURCES:
            brush = tool(name, f"A brush that copies the {name.lower()} into your label", lambda: None, checkable=True)
            brush.toggled.connect(lambda on, name=name: self._emit_brush(name, on))
            self._brushes.addButton(brush)
            row.addWidget(brush)
        row.addStretch()
        tip = "Drag a box around the structure on a slice: what it holds is outlined, no training needed (8)"
        self._box_tool = tool("Box", tip, lambda: None, checkable=True)
        self._box_tool.toggled.connect(self.box_tool_chosen)
        row.addWidget(self._box_tool)
        layout.addLayout(row)
        grid = QGridLayout()
        for number, (text, kind, tip) in enumerate(CORRECTIONS):
            each = tool(text, f"{tip} (Ctrl+Z undoes it)", partial(self.correction_requested.emit, kind))
            each.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
            grid.addWidget(each, 0, number)
        layout.addLayout(grid)
        return self._correct_box

    def _emit_brush(self, name: str, on: bool) -> None:
        for brush in self._brushes.buttons():
            if on and brush.text() != name:
                brush.blockSignals(True)
                brush.setChecked(False)
                brush.blockSignals(False)
        if on or not any(brush.isChecked() for brush in self._brushes.buttons()):
            self.copy_brush_chosen.emit(name if on else "")

    def _judging(self) -> QWidget:
        self._judge_box = QWidget()
        grid = QGridLayout(self._judge_box)
        grid.setContentsMargins(9, 6, 9, 9)
        self._state = wrapped()
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
        chosen = self.start.currentData()
        if self.start.currentIndex() < len(STARTS):
            self.start_requested.emit(chosen)
        else:
            self.layer_start_requested.emit(chosen)

    def show_starts(self, layers: list[tuple[str, str]]) -> None:
        """Layers of the viewer that can start your label: (what to show, name)."""
        while self.start.count() > len(STARTS):
            self.start.removeItem(len(STARTS))
        for text, name in layers:
            self.start.addItem(f"Layer: {text}", name)

    def show_recent(self, studies: list[tuple[str, str]]) -> None:
        """Studies opened before: (what to show, folder)."""
        self._recent.clear()
        self._recent.setEnabled(bool(studies))
        for text, folder in studies:
            action = self._recent.addAction(printable(text).replace("&", "&&"))
            action.triggered.connect(lambda _=False, folder=folder: self.recent_chosen.emit(folder))

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """The wheel scrolls the panel; it does not change a list that happens to lie under it."""
        if event.type() == QEvent.Type.Wheel and isinstance(watched, QComboBox) and not watched.hasFocus():
            event.ignore()
            return True
        return bool(super().eventFilter(watched, event))

    # -- showing ----------------------------------------------------------------------------------------------

    def show_nothing_open(self) -> None:
        """An empty panel says what to do next."""
        self.show_notice("")
        for box in (*self._scan_boxes, self._study_box, self._judge_box):
            box.setVisible(False)
        self._add_action.setEnabled(False)
        self._export_action.setEnabled(False)
        self._rename_action.setEnabled(False)

    def show_study_open(self) -> None:
        """A study is open, a scan of it not yet (or it cannot be read): cases can be chosen."""
        self._study_box.setVisible(True)
        self._add_action.setEnabled(True)
        self._export_action.setEnabled(True)
        self._rename_action.setEnabled(True)

    def show_open(self, in_study: bool) -> None:
        """Show what applies to an open scan; judging needs a study."""
        self.start.setCurrentIndex(0)
        for box in self._scan_boxes:
            box.setVisible(True)
        for box in (self._study_box, self._judge_box):
            box.setVisible(in_study)
        self._add_action.setEnabled(in_study)
        self._export_action.setEnabled(in_study)
        self._rename_action.setEnabled(in_study)

    @property
    def _scan_boxes(self) -> tuple[QWidget, ...]:
        return self._prompt_box, self._view_box, self._mask_box, self._correct_box

    def show_view_choices(self, windows: list[str], planes: bool) -> None:
        """Which windows there are for this scan, and whether it has planes to choose from."""
        chosen = self.windows.currentText()
        self.windows.clear()
        self.windows.addItems(windows)
        self.windows.setCurrentText(chosen if chosen in windows else windows[0])
        for each in self.planes:
            each.setVisible(planes)

    def show_levels(self, level: float, width: float) -> None:
        """The window in numbers."""
        digits = 0 if width >= 20 else 2
        self._levels.setText(f"L {level:,.{digits}f}  W {width:,.{digits}f}")

    def show_window_chosen(self, name: str) -> None:
        self.windows.setCurrentText(name)

    def show_copy_brush_off(self) -> None:
        for brush in self._brushes.buttons():
            brush.blockSignals(True)
            brush.setChecked(False)
            brush.blockSignals(False)

    def show_box_tool(self, on: bool) -> None:
        """Whether the box tool is in the hand."""
        self._box_tool.blockSignals(True)
        self._box_tool.setChecked(on)
        self._box_tool.blockSignals(False)

    def show_offer(self, text: str, action: str, tip: str) -> None:
        """Something that the person may want next, on one button; ``offer_taken`` tells that it was pressed."""
        self._offer_text.setText(text)
        self._take.setText(action)
        self._take.setToolTip(unmarked(tip))
        self._offer.setVisible(True)

    def hide_offer(self) -> None:
        self._offer.setVisible(False)

    def show_notice(self, text: str, warning: bool = False) -> None:
        """What happened, or what to mind; empty hides it."""
        self._notice.show_text(text, warning)

    def show_next_step(self, text: str) -> None:
        """What to do next, in one line; empty hides it."""
        self._next.setText(text)
        self._next.setVisible(bool(text))

    def show_reports(self, texts: Sequence[str]) -> None:
        """What the study's captions say of the scan on screen."""
        shown = " ".join(dict.fromkeys(texts))
        for part in (self._reports, self._reports_row):
            part.setVisible(bool(shown))
        self._reports.setText(shown if len(shown) <= 300 else f"{shown[:299]}…")
        self._reports.setToolTip(unmarked(shown))

    def show_threshold(self, threshold: float) -> None:
        """The threshold in use, without telling of a change."""
        self.threshold.blockSignals(True)
        self.threshold.setValue(threshold)
        self.threshold.blockSignals(False)

    def forget_prompts(self) -> None:
        """Another study: words typed for the one before mean nothing here."""
        self.prompt.forget()

    def show_cases(self, cases: list[tuple[str, str]], current: str, labelled: int) -> None:
        """Fill the list of (case id, title)."""
        self.case.clear()
        for case_id, title in cases:
            self.case.addItem(printable(title), case_id)
        self.case.setCurrentIndex(max(0, self.case.findData(current)))
        self._progress_label.setText(f"{labelled} of {len(cases)} judged for this structure")

    def show_structures(self, names: list[str], current: str) -> None:
        self.structure.clear()
        for name in names:
            self.structure.addItem(printable(name), name)
        self.structure.setCurrentIndex(self.structure.findData(current))

    def suggest_prompt(self, prompts: dict[str, str], structure: str) -> None:
        """Offer the structure's wording, unless the person typed something of their own."""
        typed = self.prompt.toPlainText().strip()
        if structure in prompts and (not typed or typed in prompts.values()):
            self.prompt.setPlainText(" ".join(prompts[structure].split()))

    def show_models(self, names: list[tuple[str, str]], current: str) -> None:
        """Fill the list of (name, what it knows)."""
        self.model.clear()
        for name, known in names:
            self.model.addItem(printable(name), name)
            self.model.setItemData(self.model.count() - 1, unmarked(f"Knows: {known}"), Qt.ItemDataRole.ToolTipRole)
        self.model.setCurrentIndex(self.model.findData(current))

    def show_measures(
        self, sizes: tuple[float, float, float], text_prediction: float, label_text: float, unit: str = "ml"
    ) -> None:
        """Sizes of text mask, prediction and label, and two Dice (NaN is a dash)."""
        self._measures.show_values(sizes, text_prediction, label_text, unit)

    def show_state(self, text: str) -> None:
        self._state.setText(text)

    def enable_judging(self, on: bool) -> None:
        """No judgement while a job for this case runs."""
        for each in self._judge_box.findChildren(QPushButton):
            each.setEnabled(on)


def _form(box: QWidget) -> QFormLayout:
    form = QFormLayout(box)
    form.setContentsMargins(0, 0, 0, 0)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return form
