"""The queue of cases as a table: any length, drawn where it is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtpy.QtCore import QAbstractTableModel, QModelIndex, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QImage, QKeyEvent, QPixmap
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableView

from napari_amvlm.wording import printable, unmarked

THUMBNAIL = 44
_HEADS = ("Case", "Dice?", "Status", "Look at")
_DICE_TIP = "Expected Dice of the model's mask, calibrated on validation cases"
_KEYS = {Qt.Key.Key_A: "accept", Qt.Key.Key_N: "absent", Qt.Key.Key_K: "skip", Qt.Key.Key_R: "reject"}


@dataclass(frozen=True)
class QueueRow:
    """A case of the queue; ``expected`` is expected Dice, None where nothing was assessed."""

    case_id: str
    title: str
    state: str
    expected: float | None
    flags: str

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """What the four columns show."""
        return self.title, "–" if self.expected is None else f"{self.expected:.2f}", self.state, self.flags


class QueueModel(QAbstractTableModel):
    """Rows, and the small pictures of those that are looked at."""

    pictures_wanted = Signal(object)
    """Ids of the cases (list of str) that were drawn without a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: Sequence[QueueRow] = ()
        self._pictures: dict[str, QPixmap] = {}
        self._missing: dict[str, None] = {}
        self._asked: set[str] = set()
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._ask)

    def show_rows(self, rows: Sequence[QueueRow]) -> None:
        """Another list of cases."""
        self.beginResetModel()
        self.rows = rows
        self.endResetModel()

    def show_pictures(self, pictures: Mapping[str, tuple[int, int, bytes]]) -> None:
        """Width, height and height × width × 3 bytes of some cases."""
        for case_id, (width, height, rgb) in pictures.items():
            image = QImage(rgb, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
            self._pictures[case_id] = QPixmap.fromImage(image)
        if self.rows:
            self.dataChanged.emit(self.index(0, 0), self.index(len(self.rows) - 1, 0))

    def forget_pictures(self) -> None:
        """Another study: the same ids are other cases."""
        self._pictures.clear()
        self._missing.clear()
        self._asked.clear()

    def _ask(self) -> None:
        missing, self._missing = list(self._missing), {}
        self.pictures_wanted.emit(missing)

    # -- what Qt asks -----------------------------------------------------------------------------------------

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: N802
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: N802
        return 0 if parent.isValid() else len(_HEADS)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Text, tooltip, and in the first column the picture."""
        row = self.rows[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return printable(row.cells[index.column()][:300])
        if role == Qt.ItemDataRole.ToolTipRole:
            return unmarked(row.cells[index.column()])
        if role == Qt.ItemDataRole.DecorationRole and index.column() == 0:
            if row.case_id not in self._asked:  # once: a scan that cannot be read has no picture
                self._asked.add(row.case_id)
                self._missing[row.case_id] = None
                self._soon.start(0)
            return self._pictures.get(row.case_id)
        return None

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:  # noqa: N802
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return _HEADS[section]
        return _DICE_TIP if role == Qt.ItemDataRole.ToolTipRole and section == 1 else None


class QueueTable(QTableView):
    """Arrows walk, Enter opens, A N K R judge the case that is open."""

    opened = Signal(str)
    judged = Signal(str, str)
    selected = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.cases = QueueModel()
        self.setModel(self.cases)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setIconSize(QSize(THUMBNAIL, THUMBNAIL))
        self.setWordWrap(False)
        self.verticalHeader().setVisible(False)
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.verticalHeader().setDefaultSectionSize(THUMBNAIL + 6)
        header = self.horizontalHeader()
        header.setResizeContentsPrecision(100)
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.setToolTip("Arrows walk · Enter opens · on the open case: A accept, N absent, K skip, R reject")
        self.doubleClicked.connect(lambda index: self.opened.emit(self.case_at(index.row())))
        self.selectionModel().currentRowChanged.connect(lambda now, _: self.selected.emit(self.case_at(now.row())))

    def case_at(self, row: int) -> str:
        """The id of a row's case, "" where there is none."""
        return self.cases.rows[row].case_id if 0 <= row < len(self.cases.rows) else ""

    def current_case(self) -> str:
        """The id of the selected case, or ""."""
        return self.case_at(self.currentIndex().row())

    def select(self, row: int) -> None:
        """Select a row as a click does."""
        self.setCurrentIndex(self.cases.index(row, 0))

    def show_rows(self, rows: Sequence[QueueRow], selected: str) -> None:
        """Another list; the selected case stays selected where it is still listed."""
        model = self.selectionModel()
        model.blockSignals(True)
        self.cases.show_rows(rows)
        place = next((n for n, row in enumerate(rows) if row.case_id == selected), -1)
        if place >= 0:
            self.select(place)
        model.blockSignals(False)
        self.viewport().update()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        case_id = self.current_case()
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and case_id:
            self.opened.emit(case_id)
        elif event.key() in _KEYS and not event.modifiers() and case_id:
            self.judged.emit(case_id, _KEYS[Qt.Key(event.key())])
        else:
            super().keyPressEvent(event)
