"""``amvlm plan``: what a training by minutes would do, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amvlm import console
from amvlm.config import TrainSettings
from amvlm.flags import validated


def plan(
    store: Annotated[Path, typer.Argument(help="the study's folder", show_default=False)],
    minutes: Annotated[float, typer.Option(help="what you give to the training")] = 10.0,
    output: Annotated[Path | None, typer.Option("--json", help="also write the plan as JSON")] = None,
    fingerprint: Annotated[
        bool, typer.Option("--fingerprint", help="print what the plan would be made from, as JSON, and no plan")
    ] = False,
) -> None:
    """How a network would be fitted to a study in the minutes given, with the reason of every choice."""
    settings = validated(TrainSettings, {"minutes": minutes})
    from amvlm.imaging import write_bytes_atomically
    from amvlm.learning.planned_opening import fingerprint_of_store, plan_for
    from amvlm.store import LabelStore

    facts = fingerprint_of_store(LabelStore(store), settings)
    if fingerprint:
        console.result(facts.model_dump_json())
        return
    found = plan_for(facts, settings)
    if output is not None:
        write_bytes_atomically(output, found.model_dump_json(indent=1).encode(), private=False)
    console.result(f"{found.in_short(facts.machine.device)}.")
    rows = [(reason.choice, reason.value, reason.why) for reason in found.reasons]
    console.table("The plan", ("choice", "value", "because"), rows, left=("choice", "value", "because"), width=120)
