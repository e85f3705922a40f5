"""Review pseudo-labels: the queue of cases, how good their masks are expected to be, and who judged what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyqtgraph
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHBoxLayout,
    QHeaderView,
    QTableWidget,
)

from napari_amvlm.panels.parts import Panel, ProgressRow, button, cell, small, wrapped
from napari_amvlm.panels.queue import QueueRow, QueueTable

ORDERS = (("In random order", "random"), ("Worst first", "worst"), ("Best first", "best"),
          ("Most disagreement", "disagreement"), ("Most different", "diverse"), ("By name", "name"))  # fmt: skip
FILTERS = ("To judge", "All", "Flagged", "Accepted", "Absent", "Skipped", "Rejected", "Work in progress")


class ReviewPanel(Panel):
    """The panel *Review pseudo-labels*."""

    assess_requested = Signal()
    cancel_requested = Signal()
    order_chosen = Signal(str)
    filter_chosen = Signal(str)
    case_opened = Signal(str)
    case_selected = Signal(str)
    pictures_wanted = Signal(object)
    judged = Signal(str, str)
    step_requested = Signal(int)
    restore_requested = Signal(int)
    difference_requested = Signal(int, int)
    difference_closed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._build_head()
        self._build_choices()
        self._build_queue()
        self._build_histogram()
        self._build_history()
        self.finish(400)
        self.show_idle()
        self.show_difference_open(False)
        self.show_no_study()

    def _build_head(self) -> None:
        self._summary = wrapped()
        self.column.addWidget(self._summary)
        self.assess = button("Assess all cases", "Run the model on every unjudged case and grade its masks",
                             self.assess_requested.emit)  # fmt: skip
        self.column.addWidget(self.assess)
        self._row = ProgressRow("What was graded so far is kept", self.cancel_requested.emit)
        self.show_progress, self.show_idle = self._row.show_progress, self._row.show_idle
        self.column.addWidget(self._row)

    def _build_choices(self) -> None:
        row = QHBoxLayout()
        self.filter, self.order = QComboBox(), QComboBox()
        self.filter.addItems(FILTERS)
        self.filter.setToolTip("Which cases to list")
        for text, order in ORDERS:
            self.order.addItem(text, order)
        self.order.setToolTip(
            "Which case comes next. For teaching a model random order did as well as any; worst first shows mistakes."
        )
        self.filter.activated.connect(lambda _: self.filter_chosen.emit(self.filter.currentText()))
        self.order.activated.connect(lambda _: self.order_chosen.emit(self.order.currentData()))
        row.addWidget(self.filter, 1)
        row.addWidget(self.order, 1)
        self.column.addLayout(row)

    def _build_queue(self) -> None:
        self.queue = QueueTable()
        self.queue.setMinimumHeight(300)
        self.queue.opened.connect(self.case_opened)
        self.queue.judged.connect(self.judged)
        self.queue.selected.connect(self.case_selected)
        self.queue.cases.pictures_wanted.connect(self.pictures_wanted)
        self.column.addWidget(self.queue, 3)
        for choice in (self.filter, self.order):  # what was asked for stands at the top
            choice.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            choice.setMinimumContentsLength(8)
            choice.activated.connect(lambda _: self.queue.scrollToTop())
        row = QHBoxLayout()
        row.addWidget(button("◀ Previous", "The case before, in this order", lambda: self.step_requested.emit(-1)))
        row.addWidget(button("Next ▶", "The next case, in this order", lambda: self.step_requested.emit(1)))
        row.addWidget(button("Reject", "The mask is no good and not worth correcting (R)", self._reject))
        self.column.addLayout(row)

    def _build_histogram(self) -> None:
        self.histogram = pyqtgraph.PlotWidget(background=None)
        self.histogram.setMouseEnabled(False, False)
        self.histogram.setMenuEnabled(False)
        self.histogram.hideButtons()
        self.histogram.setFixedHeight(120)
        self.histogram.setTitle("Expected Dice of the unjudged cases", size="8pt")
        self.column.addWidget(self.histogram)

    def _build_history(self) -> None:
        self._provenance = wrapped("History of the selected case")
        self.column.addWidget(self._provenance)
        self.history = QTableWidget(0, 5)
        self.history.setHorizontalHeaderLabels(["When", "Who", "What", "From", "Edits"])
        self.history.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.history.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.history.verticalHeader().setVisible(False)
        self.history.setWordWrap(False)
        self.history.setFixedHeight(130)
        self.history.setToolTip("Select one revision to restore it, two to see their difference")
        header = self.history.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(3, QHeaderView.ResizeMode.Stretch)
        self.history.itemSelectionChanged.connect(self._show_actions)
        self.column.addWidget(self.history)
        row = QHBoxLayout()
        self._restore = button("Restore", "Make the selected revision count again, as a new one", self._emit_restore)
        self._compare = button("Difference", "Show two selected revisions side by side", self._emit_difference)
        self._close = button("Close difference", "Back to the model's masks", self.difference_closed.emit)
        for each in (self._restore, self._compare, self._close):
            row.addWidget(each)
        self.column.addLayout(row)
        self._said = small("")
        self.column.addWidget(self._said)

    def _reject(self) -> None:
        if case_id := self.queue.current_case():
            self.judged.emit(case_id, "reject")

    def _selected(self) -> list[int]:
        rows = sorted({index.row() for index in self.history.selectedIndexes()})
        return [int(self.history.item(row, 0).data(Qt.ItemDataRole.UserRole)) for row in rows]

    def _show_actions(self) -> None:
        count = len(self._selected())
        self._restore.setEnabled(count == 1)
        self._compare.setEnabled(count == 2)

    def _emit_restore(self) -> None:
        self.restore_requested.emit(self._selected()[0])

    def _emit_difference(self) -> None:
        self.difference_requested.emit(*self._selected())

    # -- showing ----------------------------------------------------------------------------------------------

    def show_no_study(self) -> None:
        self._summary.setText("Open a study first: Plugins ▸ AMVLM ▸ Segment with text.")
        self.queue.show_rows([], "")
        self.history.setRowCount(0)
        self.assess.setEnabled(False)
        self._show_actions()

    def show_summary(self, text: str, can_assess: bool) -> None:
        self._summary.setText(text)
        self.assess.setEnabled(can_assess)

    def show_queue(self, rows: Sequence[QueueRow], selected: str) -> None:
        """Fill the table; the selected case stays selected where it is still listed."""
        self.queue.show_rows(rows, selected)

    def show_thumbnails(self, pictures: Mapping[str, tuple[int, int, bytes]]) -> None:
        """Small pictures beside names, by case: width, height and height × width × 3 bytes."""
        self.queue.cases.show_pictures(pictures)

    def show_histogram(self, counts: list[int]) -> None:
        """Counts in equal bins from 0 to 1."""
        self.histogram.clear()
        self.histogram.setVisible(any(counts))
        width = 1 / max(1, len(counts))
        centres = [(n + 0.5) * width for n in range(len(counts))]
        self.histogram.addItem(
            pyqtgraph.BarGraphItem(x=centres, height=counts, width=0.9 * width, brush="#2fb5d2", pen=None)
        )
        self.histogram.setXRange(0, 1)

    def show_history(self, title: str, rows: list[tuple[int, str, str, str, str, str]]) -> None:
        """(revision, when, who, what, from, edits), the newest first."""
        self._provenance.setText(title)
        self.history.setRowCount(len(rows))
        for number, (revision, *cells) in enumerate(rows):
            for column, text in enumerate(cells):
                item = cell(text)
                item.setData(Qt.ItemDataRole.UserRole, revision)
                self.history.setItem(number, column, item)
        self.history.clearSelection()
        self._show_actions()

    def show_difference_open(self, on: bool, text: str = "") -> None:
        self._close.setVisible(on)
        self._said.setText(text)
