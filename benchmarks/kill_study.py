"""kill -9 at random moments of every act that changes a study: python benchmarks/kill_study.py --kills 1000

Six kinds of acts: accept a mask, restore a revision, import two scans, export all labels, write a training
checkpoint, save a model over another of its name. A child acts in an endless loop and acknowledges each act over a
pipe, as a command would by ending; it is killed with SIGKILL after a random time. Then every acknowledged act must be
there, whole; an unfinished one wholly there or not at all; and ``verify`` may find leftovers, never damage, which
``verify --clean`` removes.

Children are forked from one warm process that has loaded the library: a kill costs a tenth of a second, not three. A
SIGKILL is no loss of power: what the kernel has taken it still writes. POSIX only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from fault_classes import makers

from amvlm.config import EncoderSettings, GeneratorSettings, StudentSettings
from amvlm.exchange import export_labels, import_study
from amvlm.imaging import read_volume
from amvlm.learning.checkpoint import load_checkpoint, save_checkpoint
from amvlm.models import AmvlmModel, KnownStructure, ModelCard, VisionLanguageModel, build_generator, build_student
from amvlm.store import LabelStore, verify
from amvlm.store.verify import clean

Acknowledged = list[Any]
LIVER = "liver"


@dataclass
class Tally:
    """What came of the kills of one kind of act."""

    kills: int = 0
    acknowledged: int = 0
    in_the_act: int = 0
    leftovers: int = 0
    lost: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


# -- acts: run in the child, one acknowledgement each ------------------------------------------------------------------


def accepts(study: Path, chance: np.random.Generator) -> Iterator[Any]:
    store = LabelStore(study)
    case = store.cases("train")[0]
    while True:
        mask = (chance.random(case.shape) > 0.5).astype(np.uint8)
        revision = store.accept(case.case_id, LIVER, mask)
        yield revision.revision_id, revision.mask_sha256


def restores(study: Path, chance: np.random.Generator) -> Iterator[Any]:
    store = LabelStore(study)
    case = store.cases("train")[0]
    history = [revision for revision in store.history(case.case_id, LIVER) if revision.mask_sha256]
    while True:
        revision = store.restore(history[chance.integers(len(history))].revision_id)
        yield revision.revision_id, revision.mask_sha256


def imports(study: Path, chance: np.random.Generator) -> Iterator[Any]:
    while True:
        with tempfile.TemporaryDirectory(dir=study.parent) as source:
            seeds = chance.integers(2**60, size=2).tolist()
            for seed in seeds:
                (Path(source) / f"s{seed}.nii.gz").write_bytes(makers.packed(makers.nifti(makers.voxels(seed))))
            import_study(source, study)
        yield seeds


def exports(study: Path, chance: np.random.Generator) -> Iterator[Any]:
    store = LabelStore(study)
    while True:
        into = study.parent / f"out-{chance.integers(2**60):x}"
        yield into.name, export_labels(store, into)


def _networks(seed: int) -> tuple[dict[str, torch.nn.Module], torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = torch.nn.Linear(40, 40)
    optimiser = torch.optim.AdamW(network.parameters())
    network(torch.ones(2, 40)).sum().backward()
    optimiser.step()
    return {"student": network}, optimiser


def checkpoints(study: Path, chance: np.random.Generator) -> Iterator[Any]:
    run = study / "runs" / "killed"
    step = 1 + max((int(path.name[-7:]) for path in run.glob("checkpoint-*")), default=0)
    while True:
        save_checkpoint(run, step, *_networks(step), {"notes of": step})
        yield step
        step += 1


def models(study: Path, chance: np.random.Generator) -> Iterator[Any]:
    model = _MODELS[0]
    while True:
        with torch.no_grad():
            next(model.generator.parameters()).view(-1)[0] = float(chance.random())
        model.save(study / "models" / "own")
        yield model.fingerprint


_MODELS: list[AmvlmModel] = []


def smallest_model() -> AmvlmModel:
    vlm = VisionLanguageModel(EncoderSettings(image_size=32))
    generator = GeneratorSettings(network="unet", channels=(8, 16))
    student = StudentSettings(network="unet", channels=(8, 16))
    card = ModelCard(name="own", kind="trained", structures=(KnownStructure(name=LIVER),))
    built = build_generator(generator, vlm, 0.05)
    return AmvlmModel(vlm, built, generator, build_student(student, 1), student, card).eval()


# -- what must be there afterwards -------------------------------------------------------------------------------------


def lost_revisions(study: Path, acknowledged: Acknowledged) -> list[str]:
    store = LabelStore(study)
    case = store.cases("train")[0]
    kept = {revision.revision_id: revision.mask_sha256 for revision in store.history(case.case_id, LIVER)}
    if not kept:
        return [f"revision {number}" for number, _ in acknowledged]
    newest = max(kept)
    lost = [f"revision {number}" for number, sha256 in acknowledged if kept.get(number) != sha256]
    lost += [f"mask of {number}" for number, sha256 in acknowledged if not store.masks.intact(sha256)]
    current = store.current(case.case_id, LIVER)
    return lost + (["the newest revision does not count"] if current is None or current.revision_id != newest else [])


def lost_imports(study: Path, acknowledged: Acknowledged) -> list[str]:
    store = LabelStore(study)
    held = Counter(store.read_image(case).array.tobytes() for case in store.cases())
    wanted = [seed for seeds in acknowledged for seed in seeds]
    lost = [f"scan {seed}" for seed in wanted if held[makers.voxels(seed).tobytes()] != 1]
    return lost + (["half an import"] if (len(store.cases()) - 6) % 2 else [])


def lost_exports(study: Path, acknowledged: Acknowledged) -> list[str]:
    lost = []
    for name, count in acknowledged:
        folder = study.parent / name
        rows = json.loads((folder / "labels.json").read_text("utf-8"))["labels"]
        files = [row["file"] for row in rows if "file" in row]
        whole = all(np.asarray(nibabel.load(folder / file).dataobj).any() for file in files)
        lost += [] if len(files) == count > 0 and whole else [f"export {name}"]
    for folder in study.parent.glob("out-*"):  # an unfinished one holds no half file under a final name
        for path in folder.glob("case*.nii.gz"):
            read_volume(path)
        shutil.rmtree(folder)
    return lost


def lost_checkpoints(study: Path, acknowledged: Acknowledged) -> list[str]:
    if not acknowledged and not list((study / "runs" / "killed").glob("checkpoint-*/state.json")):
        return []
    networks, optimiser = _networks(0)
    found = load_checkpoint(study / "runs" / "killed", networks, optimiser)
    step, notes = found.step, found.notes
    right = _networks(step)[0]["student"].state_dict()
    same = all(torch.equal(value, right[name]) for name, value in networks["student"].state_dict().items())
    lost = [] if step >= max(acknowledged, default=0) else [f"checkpoint {max(acknowledged)}: the newest is {step}"]
    sound = same and not found.doubt and notes == {"notes of": step}
    return lost + ([] if sound else [f"checkpoint {step} holds something else; {found.doubt}"])


def lost_models(study: Path, acknowledged: Acknowledged) -> list[str]:
    if not acknowledged and not (study / "models" / "own").exists():
        return []
    found = AmvlmModel.load(study / "models" / "own").fingerprint
    older = acknowledged[:-1]
    return [f"the model is an older one: {found}"] if found in older else []


KINDS: dict[str, tuple[Callable[[Path, np.random.Generator], Iterator[Any]], Callable[[Path, Acknowledged],
    list[str]]]] = {
    "accept": (accepts, lost_revisions), "restore": (restores, lost_revisions), "import": (imports, lost_imports),
    "export": (exports, lost_exports), "checkpoint": (checkpoints, lost_checkpoints), "model": (models, lost_models),
}  # fmt: skip


# -- killing -----------------------------------------------------------------------------------------------------------


_SECONDS: dict[str, float] = {}
"""About how long the first act of a child takes, by kind."""


def killed(kind: str, study: Path, seed: int, share: float) -> Acknowledged:
    """Fork a child that acts and kill it; what it acknowledged.

    ``share`` says when: in acts of the length that the first ones had.
    """
    listening, telling = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(listening)
            os.write(telling, b"0\n")
            for acknowledgement in KINDS[kind][0](study, np.random.default_rng(seed)):
                os.write(telling, json.dumps(acknowledgement).encode() + b"\n")
        except BaseException:  # noqa: BLE001 - a child never returns into the benchmark
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(telling)
    content = b""
    with os.fdopen(listening, "rb", buffering=0) as stream:
        content += stream.read(2)
        begun = time.monotonic()
        end = begun + share * _SECONDS.get(kind, 1.0)
        while (left := end - time.monotonic()) > 0:
            if select.select([stream], [], [], left)[0]:
                first = len(content) == 2
                content += os.read(stream.fileno(), 65536)
                if first:
                    took = time.monotonic() - begun
                    _SECONDS[kind] = 0.8 * _SECONDS.get(kind, took) + 0.2 * took
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        content += stream.read()
    return [json.loads(line) for line in content.split(b"\n")[1:-1]]


def check(kind: str, study: Path, acknowledged: Acknowledged, tally: Tally) -> None:
    """Count what was lost or damaged, and remove the leftovers."""
    tally.lost += KINDS[kind][1](study, acknowledged)
    store = LabelStore(study)
    findings = list(verify(store))
    tally.damage += [finding.text for finding in findings if finding.kind == "damage"]
    leftovers = len(findings) - len([finding for finding in findings if finding.kind == "damage"])
    tally.leftovers += leftovers
    tally.in_the_act += leftovers > 0
    clean(store)
    left = [finding.text for finding in verify(store)] + [path.name for path in study.rglob("*.part")]
    tally.damage += [f"--clean leaves: {text}" for text in left]


def fresh_study(folder: Path, kind: str) -> Path:
    """Six cases; a history to restore from; a first checkpoint and model to be replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    study = folder / "study"
    import_study(makers.msd(folder / "a", 4), study, split="train")
    import_study(makers.msd(folder / "b", 2, first=4), study, split="val")
    chance = np.random.default_rng(0)
    if kind == "restore":
        for _, _ in zip(range(4), accepts(study, chance), strict=False):
            pass
    return study


def kill_all(kind: str, kills: int, chance: random.Random, folder: Path) -> Tally:
    tally, study, acknowledged = Tally(), folder / "study", []
    for number in range(kills):
        if number % 40 == 0:  # a study that grew makes the check slow, not the act
            study, acknowledged = fresh_study(folder, kind), []
        new = killed(kind, study, chance.getrandbits(40), chance.uniform(0, 2.5))
        acknowledged = ([] if kind == "export" else acknowledged) + new
        tally.kills, tally.acknowledged = tally.kills + 1, tally.acknowledged + len(new)
        check(kind, study, acknowledged, tally)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="in all, shared evenly by the kinds of acts")
    parser.add_argument("--kind", choices=[*KINDS], action="append")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    kinds, tallies, started = chosen.kind or [*KINDS], {}, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-study-") as temporary:
        os.environ["XDG_DATA_HOME"] = os.environ["XDG_CACHE_HOME"] = temporary
        _MODELS.append(smallest_model())
        for number, kind in enumerate(kinds):
            count = chosen.kills // len(kinds) + (number < chosen.kills % len(kinds))
            tally = kill_all(kind, count, random.Random(f"{chosen.seed} {kind}"), Path(temporary) / kind)
            tallies[kind] = tally
            print(f"{kind:<10} {tally.kills:>5} kills, {tally.acknowledged:>6} acknowledged, {len(tally.lost)} lost, "
                  f"{len(tally.damage)} damaged, leftovers after {tally.in_the_act} kills ({tally.leftovers})",
                  flush=True)  # fmt: skip
            for text in (tally.lost + tally.damage)[:8]:
                print(f"           {text}", flush=True)
    failed = sum(len(tally.lost) + len(tally.damage) for tally in tallies.values())
    kills, acts = sum(t.kills for t in tallies.values()), sum(t.acknowledged for t in tallies.values())
    seconds = time.monotonic() - started
    print(f"{kills} kills, {acts} acknowledged acts, {failed} lost or damaged, {seconds:.0f} s")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
