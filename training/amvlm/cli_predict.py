"""``amvlm predict``: masks of every scan of a study or a folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from amvlm import console
from amvlm.errors import UserError

if TYPE_CHECKING:
    from amvlm.store import LabelStore


def predict(
    source: Annotated[Path, typer.Argument(help="a study, or a folder of scans", show_default=False)],
    into: Annotated[Path, typer.Option("--output", "-o", help="a folder, new or begun before", show_default=False)],
    prompt: Annotated[
        list[str] | None, typer.Option(help="what to outline; may be repeated [all that the model knows]")
    ] = None,
    model: Annotated[str, typer.Option(help="a model of the study, a folder, or “bundled” [the newest]")] = "",
    mask: Annotated[Literal["text", "prediction", "merged"], typer.Option("--source", help="which mask")] = "merged",
    threshold: Annotated[float, typer.Option(min=0, max=1, help="probability from which a voxel belongs to it")] = 0.5,
    combined: Annotated[bool, typer.Option("--combined", help="one file for each scan, values 1, 2, …")] = False,
    suffix: Annotated[Literal[".nii.gz", ".nii", ".nrrd", ".mha"], typer.Option(help="of the masks")] = ".nii.gz",
) -> None:
    """Outline structures in every scan, with a table of volumes, expected Dice and doubts; run again to go on."""
    from amvlm.inference import find_model
    from amvlm.inference.predicting import TABLE, Order
    from amvlm.inference.predicting import predict as predicting
    from amvlm.models import AmvlmModel
    from amvlm.store import LabelStore

    with tempfile.TemporaryDirectory() as temporary:
        names: dict[str, str] | None = None
        if (source / "store.sqlite").is_file():
            store = LabelStore(source)
            loaded = AmvlmModel.load(find_model(model, store))
        else:
            loaded = AmvlmModel.load(find_model(model))
            store, names = _imported(source, Path(temporary) / "study")
        prompts = tuple(dict.fromkeys(prompt or [structure.name for structure in loaded.card.structures]))
        if not prompts:
            raise UserError("this model knows no structure", remedy="Say what to outline: --prompt “…”.")
        kinds = {"text": "text mask", "prediction": "prediction", "merged": "merged"}
        order = Order(prompts, kinds[mask], threshold, combined, suffix)  # type: ignore[arg-type]
        masks = doubtful = cases = 0
        with console.status("Starting …") as update:
            for done, total, rows in predicting(loaded, store, order, into, names):
                update(f"Case {done} of {total} …")
                cases, masks = done, masks + len(rows)
                doubtful += sum(bool(row.doubts) for row in rows)
    console.result(f"{cases} scans, {masks} masks, {doubtful} with a doubt; see {into.name}/{TABLE}.")


def _imported(source: Path, into: Path) -> tuple[LabelStore, dict[str, str]]:
    """The scans of a folder as a study of its own, and what they are called; masks beside them are left alone."""
    from amvlm.exchange import import_study
    from amvlm.exchange.matching import stem
    from amvlm.store import LabelStore
    from amvlm.store.names import forget_names, original_names

    if not source.is_dir():
        raise UserError("there is no such folder", file=source, remedy="Name a study, or a folder of scans.")
    with console.status("Reading …") as update:
        report = import_study(
            source, into, masks="ignore", split="test",
            progress=lambda done, total: update(f"Reading {done} of {total} …"),
        )  # fmt: skip
    for line in report.lines():
        console.say(line)
    store = LabelStore(into)
    known = {case_id: stem(Path(name)) for case_id, name in original_names(store.store_id).items()}
    forget_names(store.store_id)
    stems = list(known.values())
    return store, {c: name if stems.count(name) == 1 else f"{name}-{c}" for c, name in known.items()}
