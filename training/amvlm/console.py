"""The one door to the terminal: nothing from a file, a name or a prompt is rendered as markup or as a control code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from amvlm.errors import printable

_STDERR = Console(stderr=True, highlight=False, markup=False, emoji=False)
_LONGEST_STATUS = 200


def plain(text: object) -> str:
    """Text whose lines hold no control character, so that a terminal shows it and obeys nothing in it."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


def say(text: object, kind: str = "") -> None:
    """Print a sentence on standard error, after a yellow word such as "warning", "note" or "refused"."""
    line = Text(f"{kind} ", style="yellow") if kind else Text()
    _STDERR.print(line.append(plain(text), style="default"), soft_wrap=True)


def is_terminal() -> bool:
    """Whether somebody sees standard error change; in a file, a job says in lines what a status would show."""
    return _STDERR.is_terminal


def fail(text: object) -> None:
    """Print on standard error why a command ends."""
    typer.echo(f"amvlm: {plain(text)}", err=True)


def result(text: object) -> None:
    """Print an answer on standard output."""
    typer.echo(plain(text))


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with a text while a job runs; the function changes the text."""

    def shown(line: str) -> Text:
        return Text(printable(line)[:_LONGEST_STATUS])

    with _STDERR.status(shown(text)) as spinner:
        yield lambda line: spinner.update(shown(line))


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    left: Sequence[str] = (),
    width: int = 110,
    bold: Callable[[Sequence[object]], bool] | None = None,
) -> None:
    """Print a table on standard output; columns named in ``left`` are aligned left, the others right."""
    drawn = Table(title=Text(plain(title)), min_width=min(86, width))
    for column in columns:
        drawn.add_column(Text(column), justify="left" if column in left else "right")
    for row in rows:
        style = "bold" if bold is not None and bold(row) else ""
        drawn.add_row(*(Text(plain(cell)) for cell in row), style=style)
    Console(width=width, markup=False, emoji=False, highlight=False).print(drawn)


def say_from_signal(text: str) -> None:
    """Print from a signal handler, where a buffered stream may be in the middle of a write."""
    with suppress(OSError):  # standard error is closed
        os.write(2, f"\n{text}\n".encode())
