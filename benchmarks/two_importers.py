"""Two imports into one study at the same moment: python benchmarks/two_importers.py --cases 200

Two ``amvlm import`` commands, each with its own folder of scans, start together on one study; then a third beside a
process that judges without a pause; then the same folder twice at once. Every case must hold its own image (its voxels
are compared with its source's by hash, and its private name with the source's), no number may be given twice, and
groups, splits and judgements must be whole.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from fault_classes import makers

from amvlm.store import LabelStore, verify
from amvlm.store.names import original_names

JUDGE = """
import sys
import numpy as np
from amvlm.store import LabelStore
store = LabelStore(sys.argv[1])
case = store.cases()[0]
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    mask = np.zeros(case.shape, np.uint8)
    mask.ravel()[: number + 1] = 1
    print(store.accept(case.case_id, "liver", mask).revision_id, flush=True)
"""


def make_scans(folder: Path, count: int, first: int) -> dict[str, str]:
    """Write scans; file name → hash of the voxels. Two scans are of one patient, by their names."""
    folder.mkdir()
    hashes = {}
    for number in range(first, first + count):
        array = makers.voxels(10_000 + number)
        name = f"patient{number // 2:04d}_scan{number}.nii.gz"
        (folder / name).write_bytes(makers.packed(makers.nifti(array)))
        hashes[name] = hashlib.sha256(array.tobytes()).hexdigest()
    return hashes


def start_import(source: Path, study: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "amvlm", "import", str(source), "--into", str(study)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait(*running: subprocess.Popen[str]) -> list[str]:
    """What each said last; a command that failed ends the benchmark."""
    said = []
    for process in running:
        out, _ = process.communicate()
        assert process.returncode == 0, out
        said.append(out.strip().splitlines()[-1])
    return said


def faults_of(study: Path, sources: dict[str, str]) -> list[str]:
    """What is wrong with the cases that came from these files."""
    store = LabelStore(study)
    names, cases = original_names(store.store_id), store.cases()
    faults = [f"damage: {f.text}" for f in verify(store)]
    held = {case.case_id: hashlib.sha256(np.ascontiguousarray(store.read_image(case).array).tobytes()).hexdigest()
            for case in cases}  # fmt: skip
    by_hash = {digest: name for name, digest in sources.items()}
    for case in cases:
        name = by_hash.get(held[case.case_id])
        if name is None:
            faults.append(f"{case.case_id} holds no source's voxels")
        elif names.get(case.case_id) != name:
            faults.append(f"{case.case_id} holds {name} under the name {names.get(case.case_id)}")
    count = Counter(held.values())
    faults += [f"{name} is there {count[digest]} times" for name, digest in sources.items() if count[digest] != 1]
    faults += [f"{number} is given twice" for number, n in Counter(c.case_id for c in cases).items() if n > 1]
    patients: dict[str, set[tuple[str, str]]] = {}
    for case in cases:
        patient = str(names.get(case.case_id)).split("_")[0]
        patients.setdefault(patient, set()).add((case.group, case.split))
    faults += [f"{patient} is in {found}" for patient, found in patients.items() if len(found) != 1]
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--judgements", type=int, default=200)
    chosen = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="two-importers-") as temporary:
        folder = Path(temporary)
        os.environ["XDG_DATA_HOME"] = str(folder / "home")

        def tell(what: str, faults: list[str], said: list[str], started: float) -> None:
            nonlocal failed
            failed += len(faults)
            print(f"{what}: {len(faults)} faults; {' | '.join(said)}; {time.monotonic() - started:.0f} s", flush=True)
            for fault in faults[:10]:
                print(f"    {fault}")

        started = time.monotonic()
        sources = make_scans(folder / "a", chosen.cases, 0) | make_scans(folder / "b", chosen.cases, chosen.cases)
        study = folder / "study"
        said = wait(start_import(folder / "a", study), start_import(folder / "b", study))
        tell(f"two imports of {chosen.cases} cases into a new study", faults_of(study, sources), said, started)

        started = time.monotonic()
        sources |= make_scans(folder / "c", chosen.cases, 2 * chosen.cases)
        LabelStore(study).add_structure("liver")
        judge = subprocess.Popen([sys.executable, "-c", JUDGE, str(study), str(chosen.judgements)],
                                 stdout=subprocess.PIPE, text=True)  # fmt: skip
        assert judge.stdout is not None
        judge.stdout.readline()
        said = wait(start_import(folder / "c", study))
        acknowledged = [int(line) for line in judge.communicate()[0].split()]
        store = LabelStore(study)
        kept = {revision.revision_id for revision in store.history(store.cases()[0].case_id, "liver")}
        lost = [f"judgement {number} is lost" for number in acknowledged if number not in kept]
        lost += [] if len(acknowledged) == chosen.judgements else [f"{len(acknowledged)} judgements acknowledged"]
        tell(f"an import beside {chosen.judgements} judgements", faults_of(study, sources) + lost, said, started)

        started = time.monotonic()
        sources = make_scans(folder / "d", chosen.cases, 10 * chosen.cases)
        study = folder / "same"
        said = wait(start_import(folder / "d", study), start_import(folder / "d", study))
        tell(f"one folder of {chosen.cases} cases twice at once", faults_of(study, sources), said, started)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
