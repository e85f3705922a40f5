"""Does the guard speak where the target is absent, and stay silent where it is there?

    python benchmarks/absent_target.py SCAN …        # scans without a hippocampus

The bundled model and its two structures: every case of the sample study (all hold both), and the scans given.
"""

from __future__ import annotations

import sys
from pathlib import Path

from amvlm.imaging import Volume, read_volume
from amvlm.inference import Session, bundled_model_folder
from amvlm.models import AmvlmModel
from amvlm.sample.study import first_scan

STRUCTURES = ("anterior hippocampus", "posterior hippocampus")


def spoken(model: AmvlmModel, volume: Volume, prompt: str) -> str:
    """The guard's sentence, or that nothing was found."""
    session = Session(model, volume)
    found = sum(int((result.merged > 127).sum() + (result.text_mask > 127).sum()) for result in session.segment(prompt))
    return session.doubts(prompt) or ("" if found else "nothing found")


def main() -> None:
    model = AmvlmModel.load(bundled_model_folder())
    sample = [read_volume(path) for path in sorted(first_scan().parent.glob("*.nii.gz"))]
    alarms = [spoken(model, volume, prompt) for volume in sample for prompt in STRUCTURES]
    print(f"target there: {sum(map(bool, alarms))} of {len(alarms)} doubted")
    for name in sys.argv[1:]:
        for prompt in STRUCTURES:
            print(f"{Path(name).name}, {prompt}: {spoken(model, read_volume(name), prompt) or 'silent'}")


if __name__ == "__main__":
    main()
