"""``amvlm plan``: what a training by minutes would do, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amvlm import console
from amvlm.config import TrainSettings


def plan(
    store: Annotated[Path, typer.Argument(help="the study's folder", show_default=False)],
    minutes: Annotated[float, typer.Option(min=0.01, help="what you give to the training")] = 10.0,
    output: Annotated[Path | None, typer.Option("--json", help="also write the plan as JSON")] = None,
) -> None:
    """How a network would be fitted to a study in the minutes given, with the reason of every choice."""
    from amvlm.learning.planned_opening import plan_of_store
    from amvlm.store import LabelStore

    settings = TrainSettings(minutes=minutes)
    found = plan_of_store(LabelStore(store), settings)
    if output is not None:
        output.write_text(found.model_dump_json(indent=1), "utf-8")
    console.result(found.sentence())
    rows = [(reason.choice, reason.value, reason.why) for reason in found.reasons]
    console.table("The plan", ("choice", "value", "because"), rows, left=("choice", "value", "because"), width=120)
