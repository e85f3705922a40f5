"""What prompts are read as: python benchmarks/words.py; their masks: python benchmarks/words.py masks TASK04 WORK

The wordings of ``words.csv``, in ten classes and for six studies, are read by rule. "reads as" holds the structure,
or for captions the caption itself; an empty cell asks for a refusal. Half of each class is held out: it is scored, and
its failures are shown, only with ``--held-out``. ``masks`` is in words_masks.py.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from dataclasses import dataclass
from itertools import compress, product
from pathlib import Path

import words_masks

from amvlm.text.places import LEVELS, canonical_caption
from amvlm.text.read import ReadPrompt, read_prompt
from amvlm.text.study_words import Known
from amvlm.text.terms import word_set

TABLE = Path(__file__).with_name("words.csv")
ABDOMEN = word_set("""spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right
adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right
lung_lower_lobe_right esophagus trachea small_bowel duodenum colon urinary_bladder aorta inferior_vena_cava
portal_vein_and_splenic_vein vertebrae_L1 vertebrae_L2 vertebrae_T12""")
STUDIES = {
    "hippocampus": (Known("anterior hippocampus", ("Anterior",)), Known("posterior hippocampus", ("Posterior",))),
    "parts": (Known("anterior hippocampus"), Known("posterior hippocampus"), Known("whole hippocampus")),
    "chest": (Known("pulmonary infection"),),
    "cardiac": (Known("right ventricle"), Known("myocardium"), Known("left ventricle")),
    "abdomen": tuple(map(Known, sorted(ABDOMEN))),
    "liver": (Known("liver"),),
}


def chest_captions() -> tuple[str, ...]:
    """Every caption of the template, with the patient's right first, as captions of the image's sides are stored."""
    levels = [kept for bits in product((0, 1), repeat=3) if (kept := tuple(compress(LEVELS, bits)))]
    one = [canonical_caption({side: level}) for side in ("left", "right") for level in levels]
    both = []
    for left, right in product(levels, levels):
        caption = canonical_caption({"left": left, "right": right})
        head, places = caption.rsplit(", ", 1)
        both.append(f"{head}, {' and '.join(reversed(places.split(' and ')))}")
    return (*one, *both)


@dataclass(frozen=True)
class Wording:
    """A row of the table."""

    study: str
    kind: str
    split: str
    prompt: str
    reads_as: str
    side: str

    def read(self) -> ReadPrompt:
        captions = chest_captions() if self.study == "chest" else ()
        words = {word for caption in captions for word in caption.replace(",", " ").split()}
        return read_prompt(self.prompt, STUDIES[self.study], free_words=words, captions=captions)

    def is_read(self, reading: ReadPrompt) -> bool:
        """True when structure (or caption) and side are those of the table."""
        if not self.reads_as:
            return bool(reading.refusal)
        name = reading.caption if "," in self.reads_as else reading.structure
        return not reading.refusal and name == self.reads_as and (reading.side or "") == self.side


def wordings() -> list[Wording]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [Wording(*row) for row in list(csv.reader(file))[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", action="store_true", help="score the held-out half and show its failures")
    commands = parser.add_subparsers(dest="command")
    words_masks.add_arguments(commands.add_parser("masks", help="train on hippocampi and measure masks by wording"))
    given = parser.parse_args()
    if given.command == "masks":
        words_masks.run(given, [w for w in wordings() if w.study == "parts"])
    else:
        score("held out" if given.held_out else "develop")


def score(split: str) -> None:
    """Print how many prompts of a half are read as the table says, by class, and which are not."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    guesses = 0
    for wording in (w for w in wordings() if w.split == split):
        reading = wording.read()
        total[wording.kind] += 1
        right[wording.kind] += wording.is_read(reading)
        if not wording.is_read(reading):
            guesses += not reading.refusal
            outcome = reading.refusal or f"{reading.caption} @{reading.side}"
            print(f"{wording.study} | {wording.kind} | {wording.prompt} => {outcome}")
            print(f"    instead of {wording.reads_as or 'a refusal'}")
    for kind, number in total.items():
        print(f"{kind:14} {right[kind]:3} of {number}")
    print(f"{split}: {right.total()} of {total.total()}; read as something else: {guesses}")


if __name__ == "__main__":
    main()
