"""Where the prompt is typed: history, completion, Enter runs."""

from __future__ import annotations

from qtpy.QtCore import QStringListModel, Qt, Signal
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QCompleter, QPlainTextEdit

_TAB = Qt.Key.Key_Tab


class PromptEdit(QPlainTextEdit):
    """Enter runs, Shift+Enter makes a new line, Ctrl+Up and Ctrl+Down walk the history."""

    submitted = Signal(str)
    left = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._history: list[str] = []
        self._position = 0
        self._completer = QCompleter(self)
        self._completer.setWidget(self)
        self._completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        self._completer.setFilterMode(Qt.MatchFlag.MatchContains)
        self._completer.setMaxVisibleItems(8)
        self._completer.activated.connect(self._insert)
        self.setPlaceholderText("What to outline, for example: anterior hippocampus")
        self.setToolTip(
            "Enter runs · Shift+Enter new line · Ctrl+↑/↓ earlier prompts · Esc leaves. Sides are the patient's."
        )
        self.setFixedHeight(3 * self.fontMetrics().lineSpacing() + 10)
        self.setTabChangesFocus(True)
        self.use_theme(light=False)

    def use_theme(self, light: bool) -> None:
        """Letters and ground of a dark or a light window; the list of completions is a window of its own."""
        ground, letters, chosen = ("#ffffff", "#1b1d23", "#cfe6ef") if light else ("#1b1d23", "#f0f1f2", "#2a6f86")
        self.setStyleSheet(
            f"QPlainTextEdit {{ background: {ground}; color: {letters}; border: 1px solid #7d858f }}"
        )
        self._completer.popup().setStyleSheet(
            f"QListView {{ background: {ground}; color: {letters}; border: 1px solid #5a626c; padding: 2px; }}"
            f"QListView::item:selected {{ background: {chosen}; color: {letters}; }}"
        )

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        popup = self._completer.popup()
        chosen = popup.isVisible() and popup.currentIndex().isValid()
        if popup.isVisible() and (event.key() == Qt.Key.Key_Escape or (chosen and (enter or event.key() == _TAB))):
            event.ignore()  # the list of completions takes it
            return
        if enter:
            self._hide_list()
        if event.key() == Qt.Key.Key_Escape:
            self._hide_list()
            self.left.emit()
            return
        control = bool(event.modifiers() & Qt.KeyboardModifier.ControlModifier)
        if enter and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self.submit()
        elif control and event.key() in (Qt.Key.Key_Up, Qt.Key.Key_Down):
            self._walk(-1 if event.key() == Qt.Key.Key_Up else 1)
        else:
            super().keyPressEvent(event)
            if event.text().isprintable() and event.text():
                self._complete()

    def offer(self, wordings: list[str]) -> None:
        """Wordings to complete the line at hand with."""
        self._completer.setModel(QStringListModel(wordings, self._completer))

    def _line_start(self) -> str:
        cursor = self.textCursor()
        return str(cursor.block().text()[: cursor.positionInBlock()]).lstrip()

    def _complete(self) -> None:
        """Show what goes on as the line begins, or contains it."""
        typed = self._line_start()
        popup = self._completer.popup()
        self._completer.setCompletionPrefix(typed)
        count = self._completer.completionCount()
        alone = count == 1 and self._completer.currentCompletion() == typed
        if len(typed) < 2 or not count or alone or self._completer.model().rowCount() == 0:
            self._hide_list()
            return
        popup.setFocusProxy(self)
        place = self.cursorRect()
        place.setWidth(self.viewport().width() - 8)
        place.setLeft(4)
        place.translate(0, 4)  # clear of the line that is typed
        self._completer.complete(place)

    def _hide_list(self) -> None:
        """Hide the completions for good: the window system may activate their window late, which must not focus us."""
        self._completer.popup().hide()
        self._completer.popup().setFocusProxy(None)

    def _insert(self, wording: str) -> None:
        cursor = self.textCursor()
        cursor.movePosition(cursor.MoveOperation.StartOfBlock, cursor.MoveMode.KeepAnchor)
        cursor.insertText(wording)
        self.setTextCursor(cursor)

    def forget(self) -> None:
        """Empty, without a history."""
        self.clear()
        self._history.clear()
        self._position = 0

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
