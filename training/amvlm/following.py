"""Following a job on the command line: its events on the screen, in the run's file and in TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from amvlm.errors import UserError
from amvlm.events import AnyEvent, Failed, Finished, Note, Progress, Started, Validation
from amvlm.store.runs import RunFolder, process_rank

console = Console(stderr=True, highlight=False)


def follow(events: Iterator[AnyEvent], run: RunFolder) -> None:
    """Show a job's events and keep them in the run's file; the person's Ctrl-C asks for a usable end."""
    if process_rank() > 0:  # the first of several processes speaks for all
        for _ in events:
            pass
        return
    sink = _TensorBoard(run.path)
    try:
        with console.status("Starting …") as status:
            while True:
                try:
                    event = next(events)
                except StopIteration:
                    return
                run.events.write(event)
                sink.write(event)
                _show(event, status)
    except UserError as error:
        run.events.write(Failed(text=str(error)))
        raise
    except KeyboardInterrupt:
        run.ask_to_stop()
        console.print("Stopping; a usable model is being saved …")
        for event in events:
            run.events.write(event)
    finally:
        sink.close()


def _show(event: AnyEvent, status: Any) -> None:
    match event:
        case Progress():
            left = "" if event.seconds_left is None else f", {_minutes(event.seconds_left)} left"
            losses = "  ".join(f"{name} {value:.3f}" for name, value in event.losses.items())
            status.update(f"{event.stage}: {event.step} of {event.steps}{left}  {losses}")
        case Started():
            console.print(
                f"{event.job}: {event.labelled} labelled, {event.unlabelled} unlabelled, {event.validation} validation "
                f"cases; {', '.join(event.structures)}; {event.steps} steps on {event.device} in {event.precision}"
            )
        case Note():
            console.print(f"{'[yellow]warning[/] ' if event.level == 'warning' else ''}{event.text}", soft_wrap=True)
        case Validation():
            rows = [f"{kind.replace('_', ' ')} " + ", ".join(f"{d:.3f}" for d in getattr(event, kind).values())
                    for kind in ("student", "text_mask", "merged") if getattr(event, kind)]  # fmt: skip
            console.print(f"step {event.step}, validation Dice: {'; '.join(rows)}")
        case Finished():
            typer.echo(f"Saved the model {event.model} after {_minutes(event.seconds)}.")
        case _:
            pass


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


class _TensorBoard:
    """Curves of a run, for those who like them there."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, event: AnyEvent) -> None:
        if isinstance(event, Progress):
            for name, value in event.losses.items():
                self._writer.add_scalar(f"loss/{name}", value, event.step)
        elif isinstance(event, Validation):
            for kind in ("student", "text_mask", "merged"):
                for structure, dice in getattr(event, kind).items():
                    self._writer.add_scalar(f"dice/{kind}/{structure}", dice, event.step)

    def close(self) -> None:
        self._writer.close()
