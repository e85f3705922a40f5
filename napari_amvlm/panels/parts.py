"""What the panels share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtGui import QResizeEvent
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
    """A dock panel that scrolls down and never sideways; widgets go into ``column``.

    What is pinned stays in sight at the foot, whatever is scrolled to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.body = QWidget()
        self.column = QVBoxLayout(self.body)
        self._pinned: QWidget | None = None

    def pin(self, widget: QWidget) -> None:
        """Keep a widget at the foot."""
        widget.setParent(self)
        widget.installEventFilter(self)
        self._pinned = widget

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._place_pinned()

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802
        """What is pinned grows with its text, and goes when it is hidden."""
        changes = (QEvent.Type.LayoutRequest, QEvent.Type.ShowToParent, QEvent.Type.HideToParent)
        if watched is self._pinned and event is not None and event.type() in changes:
            self._place_pinned()
        return super().eventFilter(watched, event)

    def _place_pinned(self) -> None:
        if self._pinned is None:
            return
        width = self.width()
        height = self._pinned.heightForWidth(width) if self._pinned.hasHeightForWidth() else -1
        height = max(height, self._pinned.sizeHint().height())
        shown = height if self._pinned.isVisibleTo(self) else 0
        self.setViewportMargins(0, 0, 0, shown)
        self._pinned.setGeometry(0, self.height() - height, width, height)

    def use_theme(self, light: bool) -> None:
        """Colours of a dark or a light window."""
        for part in self.findChildren(QWidget):
            if isinstance(part, Themed):
                part.use_theme(light)

    def finish(self, least_width: int) -> None:
        """Add the notice at the foot; be wide enough that nothing is cut off."""
        self.column.addStretch()
        self.column.addWidget(small(RESEARCH_ONLY))
        make_plain(self.body)
        self.setWidget(self.body)
        self.fit_width(least_width)

    def fit_width(self, least_width: int) -> None:
        self.setMinimumWidth(max(least_width, self.body.minimumSizeHint().width() + 24))


@runtime_checkable
class Themed(Protocol):
    """A part with colours of its own."""

    def use_theme(self, light: bool) -> None: ...


class Notice(QScrollArea):
    """A few sentences; longer ones scroll, so that they push nothing out of sight."""

    LINES = 5

    def __init__(self) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._label = Coloured("", "warning")
        self._label.setWordWrap(True)
        self._label.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.setWidget(self._label)

    def show_text(self, text: str, warning: bool) -> None:
        """"" hides it."""
        self._label.setText(text)
        self._label.colour(warning)
        self.setVisible(bool(text))
        self._fit()

    def text(self) -> str:
        return str(self._label.text())

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        most = self.LINES * self.fontMetrics().lineSpacing() + 4
        self.setFixedHeight(min(most, max(1, self._label.heightForWidth(max(80, self.viewport().width())))))


class Coloured(PlainLabel):
    """A label in the colour of its kind, readable in a dark window and in a light one."""

    COLOURS: ClassVar[dict[str, tuple[str, str]]] = {"warning": ("#f2a93b", "#8a5200"), "small": ("#9aa0a6", "#5c636a")}

    def __init__(self, text: str, kind: str, on: bool = True) -> None:
        super().__init__(text)
        self._kind, self._on, self._light = kind, on, False
        self._paint()

    def colour(self, on: bool) -> None:
        """In its colour, or in that of any text."""
        self._on = on
        self._paint()

    def use_theme(self, light: bool) -> None:
        self._light = light
        self._paint()

    def _paint(self) -> None:
        self.setStyleSheet(f"QLabel {{ color: {self.COLOURS[self._kind][self._light]}; }}" if self._on else "")


def button(text: str, tip: str, action: Callable[[], Any]) -> QPushButton:
    """A push button with a tooltip; ``action`` is called without arguments."""
    made = QPushButton(text)
    made.setToolTip(tip)
    made.setFocusPolicy(Qt.FocusPolicy.TabFocus)  # a click leaves the keys where they were
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
        policy = self.sizePolicy()
        policy.setRetainSizeWhenHidden(True)  # nothing jumps when it comes and goes
        self.setSizePolicy(policy)
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
        "QToolButton { padding: 3px 7px; border: 1px solid #7d858f; border-radius: 3px; }"
        "QToolButton:checked { background: #2a6f86; color: #ffffff; } QToolButton:hover { border-color: #2fb5d2; }"
    )
    made.setFocusPolicy(Qt.FocusPolicy.TabFocus)
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


def small(text: str) -> Coloured:
    """Secondary text."""
    label = Coloured(text, "small")
    label.setWordWrap(True)
    return label


def warning_label() -> Coloured:
    """A sentence that may be a warning: see :meth:`Coloured.colour`."""
    label = Coloured("", "warning", on=False)
    label.setWordWrap(True)
    return label
