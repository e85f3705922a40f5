"""Volumes and agreement of the three masks."""

from __future__ import annotations

import math

from qtpy.QtWidgets import QGridLayout, QLabel, QWidget

from napari_amvlm.panels.parts import PlainLabel, wrapped

MASK_COLOURS = ("#2fb5d2", "#f2a93b", "#e0457b")
MASK_NAMES = ("Text mask", "Prediction", "Your label")


class Measures(QWidget):
    """A column for each mask, its colour and its volume, and how well the masks agree."""

    def __init__(self) -> None:
        super().__init__()
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setVerticalSpacing(0)
        self._volumes = []
        for column, (name, colour) in enumerate(zip(MASK_NAMES, MASK_COLOURS, strict=True)):
            head, volume = PlainLabel(name), PlainLabel()
            head.setStyleSheet(f"QLabel {{ color: {colour}; }}")
            volume.setStyleSheet("QLabel { font-weight: bold; }")
            grid.addWidget(head, 0, column)
            grid.addWidget(volume, 1, column)
            self._volumes.append(volume)
        self._dice = wrapped()
        grid.addWidget(self._dice, 2, 0, 1, 3)
        self.setVisible(False)

    def show_values(
        self, sizes: tuple[float, float, float], text_prediction: float, label_text: float, unit: str = "ml"
    ) -> None:
        """Sizes of text mask, prediction and label, and two Dice (NaN is a dash)."""
        for label, size in zip(self._volumes, sizes, strict=True):
            label.setText(f"{size:.2f} {unit}" if unit == "ml" else f"{size:,.0f} {unit}")
        self._dice.setText(f"Dice: text–prediction {_dice(text_prediction)}, label–text {_dice(label_text)}")
        self.setVisible(True)

    def text(self) -> str:
        """Everything that it says."""
        return " ".join(label.text() for label in self.findChildren(QLabel))


def _dice(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
