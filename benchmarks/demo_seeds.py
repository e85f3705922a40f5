"""The demo's table over seeds: python benchmarks/demo_seeds.py --seeds 0 1 2 (under Xvfb without a display)."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            output = Path(folder) / f"{seed}.json"
            command = [
                sys.executable,
                "-m",
                "napari_amvlm.demo",
                "--unattended",
                "--seed",
                str(seed),
                "--json",
                str(output),
            ]
            subprocess.run([*command, "--screenshots", f"{folder}/{seed}"], check=True)
            tables.append(json.loads(output.read_text())["rows"])
    print(
        "| mask | structure | before | " + " | ".join(f"after, seed {s}" for s in arguments.seeds) + " | mean ± s.d. |"
    )
    print("|---" * (4 + len(tables)) + "|")
    for rows in zip(*tables, strict=True):
        after = [row["after"] for row in rows]
        spread = f"{mean(after):.3f} ± {stdev(after):.3f}" if len(after) > 1 else ""
        cells = " | ".join(f"{value:.3f}" for value in after)
        print(f"| {rows[0]['mask']} | {rows[0]['structure']} | {rows[0]['before']:.3f} | {cells} | {spread} |")


if __name__ == "__main__":
    main()
