"""``amvlm`` and ``amvlm-train``: everything that the window does, without a screen."""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from amvlm import __version__, cli_box, cli_labels, cli_plan, cli_predict, cli_study, cli_weights, console
from amvlm.config import DEMO_MINUTES, ONLY_BY_STEPS, PretrainSettings, TrainSettings
from amvlm.errors import UserError
from amvlm.flags import with_settings
from amvlm.following import errors_in_words, report_events

if TYPE_CHECKING:
    from amvlm.models import AmvlmModel
    from amvlm.store import LabelStore
    from amvlm.store.runs import RunConfig, RunFolder

app = typer.Typer(
    help="Label medical images with words. Research use only, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Split = Literal["train", "val", "test"]
RunName = Annotated[
    str, typer.Option("--run-name", help="name of the run's folder; with --resume, the run to go on with")
]
Resume = Annotated[bool, typer.Option("--resume", help="go on from the run's newest checkpoint")]
StoreFolder = Annotated[Path, typer.Argument(help="the study's folder", show_default=False)]
_Settings = TypeVar("_Settings", bound=BaseModel)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="a folder (MSD, LViT or plain) or one image", show_default=False)],
    into: Annotated[Path, typer.Option("--into", help="the study; made if it is not there", show_default=False)],
    masks: Annotated[
        Literal["labels", "reference", "ignore"],
        typer.Option(help="masks become accepted labels, or are only measured against"),
    ] = "labels",
    structure: Annotated[str, typer.Option(help="what masks without names outline")] = "",
    labels: Annotated[str, typer.Option(help="what mask values mean: a JSON file, or “mrspineseg”")] = "",
    laterality: Annotated[
        Literal["", "patient", "image"], typer.Option(help="whose left and right captions name [the layout's usual]")
    ] = "",
    split: Annotated[Literal["auto", "train", "val", "test"], typer.Option()] = "auto",
    accept_fraction: Annotated[float, typer.Option(min=0, max=1, help="share of training masks to accept")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="chooses that share")] = 0,
) -> None:
    """Copy images, masks and captions into a study."""
    from amvlm.exchange import import_study

    with console.status("Importing …") as update:
        report = import_study(
            source, into, masks=masks, structure=structure, labels=labels, laterality=laterality, split=split,
            accept_fraction=accept_fraction, seed=seed,
            progress=lambda done, total: update(f"Importing {done} of {total} …"),
        )  # fmt: skip
    for line in report.lines():
        console.say(line)
    console.result(report.sentence())


def _run_folder(store: Path, run: str, resume: bool) -> RunFolder:
    from amvlm.paths import check_name
    from amvlm.store.runs import RunFolder

    if run:
        check_name(run, "run name")
    if resume and not (run and (store / "runs" / run).is_dir()):
        raise UserError("there is no such run to resume", remedy="Name it: --run-name NAME --resume")
    if not run and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("several processes need one run's name", remedy="Name it: --run-name NAME")
    return RunFolder.named(store, run) if run else RunFolder.new(store)


def _recorded(kind: type[_Settings], settings: dict[str, object], folder: RunFolder) -> _Settings:
    """The settings that a run began with, checked again: its folder may be a stranger's."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise UserError(
            "this run cannot be resumed: its settings are not valid", file=folder.path, remedy="Start a new run."
        ) from error


def _read_by(config: RunConfig) -> dict[str, Any]:
    """A training's recorded settings; of one by minutes only those that it reads: earlier versions kept all."""
    if config.plan is None:
        return config.settings
    unread = {"steps", "mode", "student", *ONLY_BY_STEPS}
    return {name: value for name, value in config.settings.items() if name not in unread}


def _write_json(output: Path | None, content: Any) -> None:
    """Write the file that a person asked for with ``--json``."""
    from amvlm.imaging import write_bytes_atomically

    if output is not None:
        write_bytes_atomically(output, json.dumps(content, indent=1).encode(), private=False)


def _say_damaged(opened: LabelStore) -> None:
    from amvlm.inference.catalogue import damaged_models

    for sentence in damaged_models(opened).values():
        console.say(sentence, "warning")


@app.command()
@with_settings(PretrainSettings)
def pretrain(
    store: StoreFolder,
    settings: PretrainSettings,
    name: Annotated[str, typer.Option(help="the model's name")] = "",
    base: Annotated[str, typer.Option(help="a model whose encoders to start from")] = "",
    run: RunName = "",
    resume: Resume = False,
) -> None:
    """Pre-train the vision-language model and the text mask generator on a study."""
    from amvlm.inference import find_model
    from amvlm.learning import pretrain as run_pretraining
    from amvlm.models import AmvlmModel
    from amvlm.store import LabelStore
    from amvlm.store.folders import model_target

    opened = LabelStore(store)
    model_target(opened.folder, name or "base")
    folder = _run_folder(opened.folder, run, resume)
    with folder:
        named = bool(base)
        if resume:
            config = folder.read_config()
            known = _recorded(PretrainSettings, config.settings, folder)
            encoders = known.encoders.completed(settings.encoders) if not config.base else known.encoders
            settings = known.model_copy(update={"encoders": encoders})
            name, base = name or config.model, base or config.base
        start = AmvlmModel.load(find_model(base, opened, folders=named)) if base else None
        events = run_pretraining(opened, settings, folder, name or f"base-{folder.name}", resume, start)
        report_events(events, folder)


@app.command()
@with_settings(TrainSettings)
def train(
    store: StoreFolder,
    settings: TrainSettings,
    model: Annotated[str, typer.Option(help="where the text side comes from [newest pre-trained, or bundled]")] = "",
    name: Annotated[str, typer.Option(help="the new model's name")] = "",
    run: RunName = "",
    resume: Resume = False,
) -> None:
    """Train on accepted labels and on the rest of the study (the same as amvlm-train).

    By minutes, unless --steps is given: amvlm plan STUDY says beforehand what that will be.
    """
    from amvlm.inference.catalogue import base_model
    from amvlm.learning import train as run_training
    from amvlm.models import AmvlmModel
    from amvlm.store import LabelStore
    from amvlm.store.folders import model_target

    opened = LabelStore(store)
    model_target(opened.folder, name or "model")
    _say_damaged(opened)
    folder = _run_folder(opened.folder, run, resume)
    with folder:
        named = bool(model)
        if resume:
            config = folder.read_config()
            settings = _recorded(TrainSettings, _read_by(config), folder)
            name, model = name or config.model, model or config.base
        base = AmvlmModel.load(base_model(opened, model, folders=named))
        events = run_training(
            opened, base, settings, folder, name or f"model-{folder.name}", resume, previous=_previous(opened) or base
        )
        report_events(events, folder)


def _previous(opened: LabelStore) -> AmvlmModel | None:
    """The study's own model in use, to compare the new one with; a damaged one is not worth ending the run for."""
    from amvlm.inference.catalogue import model_in_use
    from amvlm.models import AmvlmModel

    last = model_in_use(opened)
    try:
        return AmvlmModel.load(last) if last is not None else None
    except UserError as error:
        console.say(f"the model in use cannot be compared: {error}", "warning")
        return None


@app.command()
def segment(
    volume: Annotated[Path, typer.Argument(help="the scan", show_default=False)],
    prompt: Annotated[str, typer.Option(help="what to outline, in the patient's sides", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="the mask: .nii.gz, .nii, .nrrd or .mha", show_default=False)
    ],
    model: Annotated[str, typer.Option(help="a model folder")] = "bundled",
    source: Annotated[Literal["text", "prediction", "merged"], typer.Option(help="which mask")] = "text",
    threshold: Annotated[float, typer.Option(min=0, max=1, help="probability from which a voxel belongs to it")] = 0.5,
    volume_index: Annotated[int | None, typer.Option(help="which volume of a 4-D file, from 0")] = None,
    series: Annotated[int | None, typer.Option(help="which series of a DICOM folder, from 0")] = None,
    accurate: Annotated[bool, typer.Option("--accurate", help="average over turned copies; slower")] = False,
) -> None:
    """Outline a structure in a scan; the mask lies on the scan's own grid."""
    import numpy as np

    from amvlm.imaging import Volume, check_target, read_volume, to_original, write_volume
    from amvlm.inference import Session, find_model
    from amvlm.inference.evaluate import default_device
    from amvlm.inference.sides import SideCheck
    from amvlm.models import AmvlmModel

    check_target(output)
    scan = read_volume(volume, volume_index, series)
    for note in scan.notes:
        console.say(note, "note")
    loaded = AmvlmModel.load(find_model(model))
    reading = loaded.card.understood(prompt)
    if reading.note:
        console.say(reading.note, "note")
    prompt = reading.caption
    session = Session(loaded, scan, default_device(), accurate)
    for warning in session.warnings(prompt):
        console.say(warning, "note")
    if source == "prediction" and session.prediction_of(prompt) is None:
        raise UserError("this model makes no prediction for that structure", remedy="Use --source text.")
    kind = {"text": "text mask", "prediction": "prediction", "merged": "merged"}[source]
    masks, sides = session.segment_volume(prompt), SideCheck.of(session, reading)
    sides.see_volume(masks)
    for doubt in filter(None, (sides.sentence(cut=True), session.doubts(prompt))):
        console.say(doubt, "note")
    probs = sides.kept(masks[kind])
    mask = to_original((probs >= max(1, round(threshold * 255))).astype(np.uint8), scan)
    write_volume(output, Volume(np.ascontiguousarray(mask), scan.affine, scan.sides_known, scan.planar))
    voxels = int(mask.sum())
    console.result(f"{output.name}: {voxels:,} voxels, {voxels * scan.voxel_ml:.2f} ml")


@app.command()
def evaluate(
    store: Annotated[Path, typer.Argument(help="the study, or a folder of images and masks", show_default=False)],
    model: Annotated[str, typer.Option(help="a model of the study, a folder, or “bundled” [the newest]")] = "",
    split: Annotated[Split, typer.Option(help="which cases")] = "test",
    vlm: Annotated[bool, typer.Option("--vlm", help="retrieval, text masks, sides and levels of the captions")] = False,
    limit: Annotated[int, typer.Option(min=0, help="evenly chosen cases, 0 for all")] = 0,
    output: Annotated[Path | None, typer.Option("--json", help="also write the figures as JSON")] = None,
) -> None:
    """Measure a model: per-case mean Dice and IoU, and pooled Dice; with --vlm what its texts are worth."""
    from amvlm.inference import evaluate as run_evaluation
    from amvlm.inference import find_model
    from amvlm.models import AmvlmModel
    from amvlm.store import LabelStore

    with tempfile.TemporaryDirectory() as temporary:
        if (store / "store.sqlite").is_file():
            opened = LabelStore(store)
            loaded = AmvlmModel.load(find_model(model, opened))
        else:
            loaded = AmvlmModel.load(find_model(model))
            opened = _imported_for_testing(store, Path(temporary) / "study", loaded)
            split = "test"
        if vlm:
            _evaluate_vlm(opened, loaded, split, limit, output)
            return
        with console.status("Evaluating …") as update:
            found = run_evaluation(
                loaded, opened, split, lambda done, total: update(f"Case {done} of {total} …"), limit
            )
    _write_json(output, found.as_json())
    rows = []
    for (kind, structure), summary in found.summaries().items():
        counted = f"{summary.cases - summary.empty_truths}" + (
            f" (+{summary.empty_truths} empty)" if summary.empty_truths else ""
        )
        figures = (summary.mean_dice, summary.sd_dice, summary.mean_iou, summary.pooled_dice)
        rows.append((kind, structure, counted, *(f"{figure:.3f}" for figure in figures)))
    console.table(
        f"{found.model} on {split}: {len(found.case_ids)} cases (research use only)",
        ("mask", "structure", "cases", "mean Dice", "± sd", "mean IoU", "pooled Dice"), rows,
        left=("mask", "structure"),
    )  # fmt: skip


def _imported_for_testing(source: Path, into: Path, model: AmvlmModel) -> LabelStore:
    """A folder that is no study yet, as one whose masks are only measured against; masks without names outline what
    the model knows, when that is one structure."""
    from amvlm.exchange import import_study
    from amvlm.store import LabelStore
    from amvlm.store.names import forget_names

    if not source.is_dir():
        raise UserError("there is no such folder", file=source, remedy="Name a study, or a folder of images and masks.")
    known = [structure.name for structure in model.card.structures]
    with console.status("Importing …") as update:
        report = import_study(
            source, into, masks="reference", structure=known[0] if len(known) == 1 else "", split="test",
            progress=lambda done, total: update(f"Importing {done} of {total} …"),
        )  # fmt: skip
    for line in report.lines():
        console.say(line)
    console.say(report.sentence())
    store = LabelStore(into)
    forget_names(store.store_id)
    return store


def _evaluate_vlm(store: LabelStore, model: AmvlmModel, split: Split, limit: int, output: Path | None) -> None:
    from amvlm.inference import evaluate_vlm

    with console.status("Evaluating …") as update:
        found = evaluate_vlm(
            model, store, split, limit=limit, progress=lambda done, total: update(f"Case {done} of {total} …")
        )
    _write_json(output, found.as_json())
    console.table(
        f"{found.model} on {split}, its captions as prompts (research use only)", ("what", "measure", "value"),
        list(found.rows()), left=("what", "measure"),
    )  # fmt: skip


@app.command()
def quality(
    store: StoreFolder,
    model: Annotated[str, typer.Option(help="a model of the study, a folder, or “bundled” [the newest]")] = "",
    split: Annotated[Split, typer.Option(help="which cases")] = "train",
    order: Annotated[
        Literal["random", "worst", "disagreement", "diverse"], typer.Option(help="which case to label first")
    ] = "random",
    seed: Annotated[int, typer.Option(min=0, help="of the random order")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="how many rows to print, 0 for all")] = 20,
    output: Annotated[Path | None, typer.Option("--json", help="also write all of it as JSON")] = None,
) -> None:
    """How good the pseudo-labels of unjudged cases probably are, and which case to label next."""
    from dataclasses import asdict

    from amvlm.inference import assess, find_model
    from amvlm.models import AmvlmModel
    from amvlm.store import LabelStore, queue

    opened = LabelStore(store)
    loaded = AmvlmModel.load(find_model(model, opened))
    with console.status("Looking …") as update:
        found = assess(loaded, opened, split, lambda done, total: update(f"Case {done} of {total} …"))
    place = {case_id: number for number, case_id in enumerate(queue(found, order, seed))}
    found = sorted(found, key=lambda q: (place[q.case_id], q.structure))
    _write_json(output, [asdict(q) for q in found])
    rows = []
    for q in found[: limit or None]:
        expected = "–" if q.expected_dice is None else f"{q.expected_dice:.3f}"
        rows.append(
            (q.case_id, q.structure, expected, f"{q.agreement:.3f}", f"{q.foreground:.2%}", q.components,
             "; ".join(q.flags))
        )  # fmt: skip
    console.table(
        f"{loaded.card.name}: {len(place)} cases to judge, {order} first (research use only)",
        ("case", "structure", "expected Dice", "agreement", "foreground", "parts", "flags"), rows,
        left=("case", "structure", "flags"), width=120,
    )  # fmt: skip
    if found and all(q.expected_dice is None for q in found):
        console.say("this model was not calibrated: accept a few validation cases and train again.", "note")


@app.command()
def verify(
    store: StoreFolder,
    clean: Annotated[bool, typer.Option("--clean", help="remove what killed programs left")] = False,
) -> None:
    """Re-hash every mask and image of a study and check its index."""
    from amvlm.store import LabelStore
    from amvlm.store import clean as run_cleaning
    from amvlm.store import verify as run_verification

    opened = LabelStore(store)
    if clean:
        typer.echo(f"{len(run_cleaning(opened))} leftovers removed.")
    findings = list(run_verification(opened))
    for finding in findings:
        console.result(f"{finding.kind}: {finding.text}")
    damage = sum(finding.kind == "damage" for finding in findings)
    console.result(f"{len(opened.cases())} cases, {len(opened.snapshot().revisions)} labels, {damage} damaged.")
    if damage:
        raise typer.Exit(1)


@app.command()
def export(
    store: StoreFolder,
    into: Annotated[Path, typer.Argument(help="a new folder", show_default=False)],
    suffix: Annotated[str, typer.Option(help=".nii.gz, .nii, .nrrd or .mha")] = ".nii.gz",
    dicom: Annotated[
        Path | None, typer.Option(help="write DICOM SEG for the series in this folder, which the scans came from")
    ] = None,
) -> None:
    """Write every accepted label as NIfTI, NRRD, MetaImage or DICOM SEG."""
    from amvlm.exchange import export_dicom_seg, export_labels
    from amvlm.store import LabelStore

    if dicom is not None:
        console.result(f"{export_dicom_seg(LabelStore(store), dicom, into)} DICOM segmentations written.")
    else:
        console.result(f"{export_labels(LabelStore(store), into, suffix)} masks written.")


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="of the training")] = 0,
    minutes: Annotated[float, typer.Option(min=0.01, max=1000, help="of training")] = DEMO_MINUTES,
    output: Annotated[Path | None, typer.Option("--json", help="also write the table as JSON")] = None,
) -> None:
    """Run the whole loop on the bundled study, without a window."""
    from amvlm.demo import run_demo

    run_demo(seed, minutes, output)


app.add_typer(cli_study.structures, name="structure")
app.add_typer(cli_study.captions, name="caption")
app.add_typer(cli_weights.app, name="weights")
for _command in (
    cli_plan.plan, cli_predict.predict, cli_box.box, cli_labels.judge, cli_labels.history, cli_labels.restore,
    cli_labels.edit,
):  # fmt: skip
    app.command()(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``amvlm``: a sentence and exit code 2 for what a person can mend, never a traceback.

    Exit code 130: the person ended the command, and nothing was saved.
    """
    from amvlm.store.runs import Stopped

    try:
        with errors_in_words():
            given = None if arguments is None else list(arguments)
            app(given, prog_name="amvlm", standalone_mode=given is None)
    except UserError as error:
        console.fail(str(error))
        raise SystemExit(130 if isinstance(error, Stopped) else 2) from None
    except SystemExit as error:
        if error.code == 130:  # typer's word for Ctrl-C
            console.fail("ended by Ctrl-C. What was saved before is kept; run the command again.")
        raise
    except Exception as error:  # the last boundary: a traceback shows paths, which may name patients
        if "AMVLM_TRACEBACK" in os.environ:
            raise
        console.fail(_unexpected(error))
        raise SystemExit(70) from None


def _unexpected(error: BaseException) -> str:
    """Which error of ours, and where, without a path and without the error's own text."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if "amvlm" in Path(frame.filename).parts]
    where = f" in {Path(places[-1].filename).name}, line {places[-1].lineno}" if places else ""
    return (
        f"an unexpected {type(error).__name__}{where}. This is a fault of amvlm; please report it. "
        "With AMVLM_TRACEBACK=1 it is shown in full."
    )


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="show the version")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
