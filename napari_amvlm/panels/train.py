"""Train: what there is to learn from, start and stop, live curves, before and after."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

import pyqtgraph
from qtpy.QtCore import Signal
from qtpy.QtGui import QFont, QShowEvent
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QProgressBar,
    QTableWidget,
    QWidget,
)

from napari_amvlm.panels.measures import MASK_COLOURS
from napari_amvlm.panels.parts import Fold, Panel, button, cell, make_plain, small, warning_label, wrapped
from napari_amvlm.wording import printable

COLOURS = ("#2fb5d2", "#f2a93b", "#e0457b", "#7bc96f", "#b48ead", "#d0d0d0")
MOST_CURVES = 12
MINUTES = (
    (5.0, "5 minutes"), (10.0, "10 minutes"), (30.0, "30 minutes"), (60.0, "1 hour"), (480.0, "overnight (8 hours)"),
)  # fmt: skip
USUAL_MINUTES = 10.0
ENOUGH = 5
"""Labelled validation cases from which a training knows how good it is."""
_MOST_STEPS = 2**31 - 1


MASKS = {**dict(zip(("text mask", "prediction"), MASK_COLOURS, strict=False)), "merged mask": "#7bc96f"}
"""Curves of the masks have the colours of their views."""


class Curves(pyqtgraph.PlotWidget):
    """Named curves over steps, and nothing to click away; ``colours`` are those of names known before."""

    def __init__(self, title: str, colours: Mapping[str, str] | None = None) -> None:
        super().__init__(background=None)
        self._title, self._colours = title, dict(colours or {})
        self.setMouseEnabled(False, False)
        self.hideButtons()
        self.setMenuEnabled(False)
        self.showGrid(y=True, alpha=0.2)
        self.setFixedHeight(185)
        self.setMinimumWidth(200)
        for axis in ("left", "bottom"):
            self.getAxis(axis).setStyle(tickFont=QFont("Sans", 7))
        self.setLabel("bottom", "")
        self._points: dict[str, tuple[list[float], list[float]]] = {}
        self._curves: dict[str, pyqtgraph.PlotDataItem] = {}
        self._show_names()

    def add(self, name: str, step: float, value: float) -> None:
        """Add one point; what is no number is left out, and curves beyond ``MOST_CURVES``."""
        if not math.isfinite(value) or (name not in self._points and len(self._points) == MOST_CURVES):
            return
        xs, ys = self._points.setdefault(name, ([], []))
        xs.append(step)
        ys.append(value)
        if name not in self._curves:
            colour = self._colour(name, len(self._curves))
            self._curves[name] = self.plot(pen=pyqtgraph.mkPen(colour, width=2), name=name, symbol="o", symbolSize=3,
                                           symbolBrush=colour, symbolPen=None)  # fmt: skip
            self._show_names()
        self._curves[name].setData(xs, ys)

    def _colour(self, name: str, number: int) -> str:
        return self._colours.get(name, COLOURS[number % len(COLOURS)])

    def _show_names(self) -> None:
        """Names in their curves' colours, in the title: a legend would cover the curves."""
        names = " · ".join(
            f"<span style='color:{self._colour(name, n)}'>{html.escape(printable(name[:40]))}</span>"
            for n, name in enumerate(self._curves)
        )
        self.setTitle(f"{self._title}<br>{names}" if names else self._title, size="8pt")

    def reset(self) -> None:
        for curve in self._curves.values():
            self.removeItem(curve)
        self._points.clear()
        self._curves.clear()
        self._show_names()


class TrainPanel(Panel):
    """The panel *Train*."""

    start_requested = Signal()
    stop_requested = Signal()
    resume_requested = Signal()
    use_model_requested = Signal()
    old_model_requested = Signal()
    minutes_changed = Signal()
    shown = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._build_choices()
        self._build_plan()
        self._build_run()
        self._build_result()
        self.finish(380)
        self.show_no_study()

    def _build_choices(self) -> None:
        self._counts = wrapped()
        self._notice = warning_label()
        self.column.addWidget(self._counts)
        self.column.addWidget(self._notice)
        self._minutes = QComboBox()
        self._minutes.setToolTip("How long the training may take; more minutes make a better model")
        for value, text in MINUTES:
            self._minutes.addItem(text, value)
        self._minutes.setCurrentIndex([value for value, _ in MINUTES].index(USUAL_MINUTES))
        self._minutes.currentIndexChanged.connect(lambda _: self.minutes_changed.emit())
        form = QFormLayout()
        form.addRow("Time", self._minutes)
        self._name = QLineEdit()
        self._name.setMaxLength(40)
        self._name.setToolTip("What the new model is called")
        form.addRow("Model's name", self._name)
        self.column.addLayout(form)

    def _build_plan(self) -> None:
        self._plan = warning_label()
        self._reasons = small("")
        self._details = Fold("Details", "Every choice of the plan, and why", self._reasons)
        self._form = QWidget()
        self._advanced = Fold("Advanced", "Settings for those who compare trainings", self._form)
        for part in (self._plan, self._details, self._advanced):
            self.column.addWidget(part)

    def _build_run(self) -> None:
        row = QHBoxLayout()
        self.start = button("Start", "Train on the accepted labels, in a process of its own", self.start_requested.emit)
        self.stop = button("Stop", "Save a usable model and end", self.stop_requested.emit)
        self.resume = button("Resume", "Go on from the last checkpoint", self.resume_requested.emit)
        for each in (self.start, self.stop, self.resume):
            row.addWidget(each)
        self.column.addLayout(row)
        self.progress = QProgressBar()
        self.column.addWidget(self.progress)
        self._stage = wrapped()
        self.column.addWidget(self._stage)

    def _build_result(self) -> None:
        self.table = QTableWidget(0, 3)
        self.table.setHorizontalHeaderLabels(["Validation Dice", "before", "after"])
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.table.verticalHeader().setVisible(False)
        self.table.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        self.column.addWidget(self.table)
        self.use = button("Use the new model", "Choose it in Segment with text", self.use_model_requested.emit)
        self.back = button(
            "Switch back to the previous model", "Nothing of the new model is lost", self.old_model_requested.emit
        )
        row = QHBoxLayout()
        row.addWidget(self.use)
        row.addWidget(self.back)
        self.column.addLayout(row)
        self.losses = Curves("Losses by step")
        self.dice = Curves("Dice on validation cases by step", MASKS)
        self._loss_box = Fold("Details of the run", "What the training minimises", self.losses)
        self.column.addWidget(self.dice)
        self.column.addWidget(self._loss_box)

    def set_form(self, form: QWidget) -> None:
        """Put the settings form, built from config.py, in its place."""
        self._advanced.replace(form)
        self._form = form
        make_plain(form)
        form.setMinimumWidth(0)
        for combo in form.findChildren(QComboBox):
            combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.fit_width(380)

    @property
    def minutes(self) -> float:
        """What the person gives to the training."""
        return float(self._minutes.currentData())

    @property
    def model_name(self) -> str:
        """What the new model is to be called."""
        return str(self._name.text())

    def suggest_name(self, name: str) -> None:
        """A name for the next model."""
        self._name.setText(name)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        super().showEvent(event)
        self.shown.emit()

    def show_plan(self, line: str, reasons: list[str], warning: bool = False) -> None:
        """What a training would do, and why; "" hides it."""
        self._plan.setText(line)
        self._plan.setVisible(bool(line))
        self._plan.colour(warning)
        self._reasons.setText("\n".join(f"• {reason}" for reason in reasons))
        self._details.setVisible(bool(reasons))

    def show_no_study(self) -> None:
        self._counts.setText("Open a study first: Plugins ▸ AMVLM ▸ Segment with text.")
        self.show_plan("", [])
        run = (self.progress, self._stage, self._loss_box, self.dice)
        for part in (*run, self.table, self.use, self.back, self._notice):
            part.setVisible(False)
        self.show_running(False, can_start=False, can_resume=False)

    def show_counts(self, labelled: int, validation: int, unlabelled: int, rows: list[str]) -> None:
        """What there is to learn from, and one line per structure."""
        few = "" if validation >= ENOUGH else f" (from {ENOUGH} on, quality is measured)"
        self._counts.setText(
            f"{labelled} labelled and {unlabelled} unlabelled training cases; {validation} labelled for validation"
            f"{few}.\n" + "\n".join(rows)
        )

    def show_running(self, running: bool, can_start: bool, can_resume: bool) -> None:
        self.start.setEnabled(can_start and not running)
        self.stop.setEnabled(running)
        self.resume.setEnabled(can_resume and not running)
        self._form.setEnabled(not running)
        self._minutes.setEnabled(not running)
        self._name.setEnabled(not running)

    def show_notice(self, text: str, warning: bool = False) -> None:
        self._notice.setText(text)
        self._notice.setVisible(bool(text))
        self._notice.colour(warning)

    def show_run_begun(self) -> None:
        """Clear the curves for a new run."""
        for curves in (self.losses, self.dice):
            curves.reset()
        self._loss_box.setVisible(True)
        self.dice.setVisible(True)
        self.table.setVisible(False)
        self.use.setVisible(False)
        self.back.setVisible(False)
        self.show_stage("Starting: the library is loading …", 0, 0)

    def show_stage(self, text: str, step: int, steps: int) -> None:
        self.progress.setVisible(True)
        self.progress.setRange(0, min(max(steps, 0), _MOST_STEPS))
        self.progress.setValue(min(max(step, 0), _MOST_STEPS))
        self._stage.setVisible(True)
        self._stage.setText(text)

    def show_result(self, rows: list[tuple[str, str, str]], text: str, worse: bool = False) -> None:
        """Before and after by mask and structure, and the offer to use the model; one that is worse says so."""
        self.use.setText("Use it anyway" if worse else "Use the new model")
        self.progress.setVisible(False)
        self._stage.setVisible(True)
        self._stage.setText(text)
        self.table.setRowCount(len(rows))
        for r, row in enumerate(rows):
            for c, value in enumerate(row):
                self.table.setItem(r, c, cell(value))
        self.table.setVisible(bool(rows))
        height = self.table.horizontalHeader().height() + sum(self.table.rowHeight(r) for r in range(len(rows))) + 4
        self.table.setFixedHeight(height)
        self.use.setVisible(True)

    def show_model_in_use(self, text: str, before: str) -> None:
        """Which model is chosen now, and the way back to the one before ("" hides it)."""
        self._stage.setText(text)
        self.use.setVisible(not before)
        self.back.setVisible(bool(before))
        self.back.setText(f"Switch back to {printable(before)}".replace("&", "&&") if before else "")
