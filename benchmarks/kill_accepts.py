"""Kill -9 at random moments while another process accepts: python benchmarks/kill_accepts.py --kills 200"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from amvlm.sample import copy_sample_study
from amvlm.store import LabelStore, verify

ACCEPT = """
import sys
import numpy as np
from amvlm.store import LabelStore
store = LabelStore(sys.argv[1])
case = store.cases("train")[0]
rng = np.random.default_rng(int(sys.argv[2]))
print("ready", flush=True)
while True:
    mask = (rng.random(case.shape) > 0.5).astype(np.uint8)
    print(store.accept(case.case_id, "anterior hippocampus", mask).revision_id, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    acknowledged: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        store = copy_sample_study(Path(folder) / "study")
        for kill in range(arguments.kills):
            with subprocess.Popen(
                [sys.executable, "-c", ACCEPT, str(store.folder), str(kill)], stdout=subprocess.PIPE, text=True
            ) as child:
                assert child.stdout is not None
                child.stdout.readline()
                try:
                    child.wait(timeout=chance.random() * 0.05)
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGKILL)
                acknowledged.update(int(line) for line in child.stdout.read().split("\n")[:-1])
        findings = list(verify(LabelStore(store.folder)))
        case_id = store.cases("train")[0].case_id
        history = {revision.revision_id: revision for revision in store.history(case_id, "anterior hippocampus")}
        lost = [i for i in acknowledged if i not in history or not store.masks.intact(str(history[i].mask_sha256))]
        damage = [finding for finding in findings if finding.kind == "damage"]
    leftovers = len(findings) - len(damage)
    print(f"{arguments.kills} kills, {len(acknowledged)} acknowledged accepts, {len(lost)} lost, "
          f"{len(damage)} damaged, {leftovers} harmless leftovers")  # fmt: skip
    raise SystemExit(bool(lost or damage))


if __name__ == "__main__":
    main()
