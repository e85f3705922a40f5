"""Two small views of the planes that the large one does not show."""

from __future__ import annotations

from qtpy.QtCore import QPoint, QRect, QSize, Qt, Signal
from qtpy.QtGui import QColor, QImage, QMouseEvent, QPainter, QPaintEvent, QPen, QResizeEvent, QShowEvent
from qtpy.QtWidgets import QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

CROSS, LETTERS, GROUND = QColor(255, 224, 138, 170), QColor("#ffe08a"), QColor("black")
_LEAST, _USUAL = 96, 160


class PlaneView(QWidget):
    """One slice with a cross-hair; a click says where, in parts of the slice's height and width."""

    pointed = Signal(float, float)
    resized = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._image = QImage()
        self._cross, self._ends = (0.5, 0.5), ("", "", "", "")
        self.setMinimumSize(_LEAST, _LEAST)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setCursor(Qt.CursorShape.CrossCursor)

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(_LEAST, _USUAL)

    @property
    def room(self) -> tuple[int, int]:
        """Rows and columns that a picture may have."""
        return max(1, self.height()), max(1, self.width())

    def show_picture(
        self, rgb: bytes, size: tuple[int, int], cross: tuple[float, float], ends: tuple[str, str, str, str]
    ) -> None:
        """RGB bytes of so many rows and columns, where the cross-hair is (parts of height and width), and the letters
        at the left, right, top and bottom."""
        rows, columns = size
        self._image = QImage(rgb, columns, rows, 3 * columns, QImage.Format.Format_RGB888).copy()
        self._cross, self._ends = cross, ends
        self.update()

    def show_nothing(self) -> None:
        self._image = QImage()
        self.update()

    @property
    def frame(self) -> QRect:
        """Where the picture lies in the widget."""
        place = QRect(QPoint(0, 0), self._image.size())
        place.moveCenter(self.rect().center())
        return place

    def paintEvent(self, _: QPaintEvent | None) -> None:  # noqa: N802
        painter = QPainter(self)
        painter.fillRect(self.rect(), GROUND)
        if self._image.isNull():
            return
        frame = self.frame
        painter.drawImage(frame.topLeft(), self._image)
        painter.setPen(QPen(CROSS, 1))
        y = frame.top() + int(self._cross[0] * frame.height())
        x = frame.left() + int(self._cross[1] * frame.width())
        painter.drawLine(frame.left(), y, frame.right(), y)
        painter.drawLine(x, frame.top(), x, frame.bottom())
        painter.setPen(LETTERS)
        area, middle = self.rect().adjusted(3, 1, -3, -1), Qt.AlignmentFlag.AlignVCenter
        sides = (
            middle | Qt.AlignmentFlag.AlignLeft, middle | Qt.AlignmentFlag.AlignRight,
            Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignHCenter,
            Qt.AlignmentFlag.AlignBottom | Qt.AlignmentFlag.AlignHCenter,
        )  # fmt: skip
        for side, letter in zip(sides, self._ends, strict=True):
            painter.drawText(area, int(side), letter)

    def mousePressEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        self._point(event)

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        self._point(event)

    def _point(self, event: QMouseEvent | None) -> None:
        frame = self.frame
        if event is None or self._image.isNull() or not event.buttons() & Qt.MouseButton.LeftButton:
            return
        place = event.position().toPoint()
        down = (place.y() - frame.top() + 0.5) / frame.height()
        across = (place.x() - frame.left() + 0.5) / frame.width()
        self.pointed.emit(min(0.999, max(0.0, down)), min(0.999, max(0.0, across)))

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        super().resizeEvent(event)
        self.resized.emit()


class PlanesPanel(QWidget):
    """The panel *Other planes*: two views, each under its plane's name."""

    pointed = Signal(int, float, float)
    came_up = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("AMVLM other planes")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(2, 2, 2, 2)
        self.views, self._titles = (PlaneView(), PlaneView()), (QLabel(), QLabel())
        for number, (view, title) in enumerate(zip(self.views, self._titles, strict=True)):
            column = QVBoxLayout()
            column.addWidget(title)
            column.addWidget(view, 1)
            layout.addLayout(column, 1)
            view.pointed.connect(lambda down, across, n=number: self.pointed.emit(n, down, across))
            view.resized.connect(self.came_up)
        self.setToolTip("The planes that the large view does not show, through the point where you last clicked.")

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802
        super().showEvent(event)
        self.came_up.emit()

    def show_titles(self, first: str, second: str) -> None:
        """The planes' names; empty ones where nothing is shown."""
        for label, text in zip(self._titles, (first, second), strict=True):
            label.setText(text)
