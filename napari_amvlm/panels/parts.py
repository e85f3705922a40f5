"""What the panels share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QDialog,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QTableWidgetItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_amvlm.wording import breakable, plain, printable, unmarked

RESEARCH_ONLY = "Research use only, not for diagnosis."


class PlainLabel(QLabel):
    """A label that shows every character as it is: what a file or a person calls something is never rendered."""

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setText(text)

    def setText(self, text: str) -> None:  # noqa: N802
        super().setText(breakable(plain(text)))


def make_plain(widget: QWidget) -> None:
    """The same for labels that Qt and magicgui made for a form."""
    for label in widget.findChildren(QLabel):
        label.setTextFormat(Qt.TextFormat.PlainText)


def cell(text: str) -> QTableWidgetItem:
    """A cell of a table, whose tooltip shows what is cut off."""
    item = QTableWidgetItem(printable(text[:300]))
    item.setToolTip(unmarked(text))
    return item


class Panel(QScrollArea):
    """A dock panel that scrolls down and never sideways; widgets go into ``column``."""

    def __init__(self) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.body = QWidget()
        self.column = QVBoxLayout(self.body)

    def finish(self, least_width: int) -> None:
        """Add the notice at the foot; be wide enough that nothing is cut off."""
        self.column.addStretch()
        self.column.addWidget(small(RESEARCH_ONLY))
        make_plain(self.body)
        self.setWidget(self.body)
        self.fit_width(least_width)

    def fit_width(self, least_width: int) -> None:
        self.setMinimumWidth(max(least_width, self.body.minimumSizeHint().width() + 24))


def button(text: str, tip: str, action: Callable[[], Any]) -> QPushButton:
    """A push button with a tooltip; ``action`` is called without arguments."""
    made = QPushButton(text)
    made.setToolTip(tip)
    made.clicked.connect(lambda: action())
    return made


class Fold(QWidget):
    """A title that opens and closes what lies under it; closed at first."""

    def __init__(self, title: str, tip: str, content: QWidget) -> None:
        super().__init__()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self.title = QToolButton()
        self.title.setText(title)
        self.title.setToolTip(tip)
        self.title.setCheckable(True)
        self.title.setStyleSheet("QToolButton { border: none; padding: 2px; }")
        self.title.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.title.toggled.connect(self._toggle)
        column.addWidget(self.title)
        column.addWidget(content)
        self._content = content
        self._toggle(False)

    def replace(self, content: QWidget) -> None:
        """Put something else under the title."""
        self.layout().replaceWidget(self._content, content)
        self._content.deleteLater()
        self._content = content
        self._toggle(self.title.isChecked())

    def _toggle(self, open_: bool) -> None:
        self.title.setArrowType(Qt.ArrowType.DownArrow if open_ else Qt.ArrowType.RightArrow)
        self._content.setVisible(open_)


class ProgressRow(QWidget):
    """A bar while something runs, and a button that ends it; hidden while nothing does."""

    def __init__(self, tip: str, cancel: Callable[[], Any]) -> None:
        super().__init__()
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self.bar = QProgressBar()
        self.bar.setTextVisible(True)
        row.addWidget(self.bar, 1)
        row.addWidget(button("Cancel", tip, cancel))
        self.show_idle()

    def show_progress(self, done: int, total: int, text: str) -> None:
        """``total`` 0 is an unknown length."""
        self.bar.setRange(0, total)
        self.bar.setValue(done)
        self.bar.setFormat(text)
        self.setVisible(True)

    def show_idle(self) -> None:
        self.setVisible(False)


def tool(text: str, tip: str, action: Callable[[], Any], checkable: bool = False) -> QToolButton:
    """A small button for a row of tools."""
    made = QToolButton()
    made.setText(text)
    made.setToolTip(tip)
    made.setCheckable(checkable)
    made.setStyleSheet(
        "QToolButton { padding: 3px 7px; border: 1px solid #5a626c; border-radius: 3px; }"
        "QToolButton:checked { background: #2a6f86; } QToolButton:hover { border-color: #9aa0a6; }"
    )
    made.clicked.connect(lambda: action())
    return made


def show_table(title: str, rows: dict[str, str], parent: QWidget | None = None) -> QDialog:
    """A small window with two columns, such as keys and what they do."""
    window = QDialog(parent)
    window.setWindowTitle(title)
    window.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    grid = QGridLayout(window)
    grid.setContentsMargins(20, 16, 20, 16)
    grid.setHorizontalSpacing(24)
    for number, (left, right) in enumerate(rows.items()):
        key = PlainLabel(left)
        key.setStyleSheet("QLabel { font-weight: bold; }")
        grid.addWidget(key, number, 0)
        grid.addWidget(PlainLabel(right), number, 1)
    window.show()
    return window


def show_list(title: str, text: str, lines: Sequence[str], parent: QWidget | None = None) -> QDialog:
    """A small window with a sentence and a long list under it, which can be selected and copied."""
    window = QDialog(parent)
    window.setWindowTitle(title)
    window.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    window.resize(640, 360)
    column = QVBoxLayout(window)
    column.addWidget(wrapped(text))
    listed = QPlainTextEdit("\n".join(printable(line) for line in lines))
    listed.setReadOnly(True)
    column.addWidget(listed)
    column.addWidget(button("Close", "Close this list", window.close))
    window.show()
    return window


def wrapped(text: str = "") -> PlainLabel:
    label = PlainLabel(text)
    label.setWordWrap(True)
    return label


def small(text: str) -> PlainLabel:
    """Secondary text."""
    label = wrapped(text)
    label.setStyleSheet("QLabel { color: #9aa0a6; }")
    return label
