"""The catalogue of bad input, tried from outside: python benchmarks/faults.py [--short] [--json FILE] [--only WORDS]

Makes every hostile or broken file, name, study and model itself, gives it to the window-less commands, and prints one
table. A trial stands when the command answers in a sentence (no traceback, no hang, no path, no words of Python), when
nothing was read or written outside what the person named (canaries round it, planted bytes that may turn up nowhere),
when what should not change has not, and when ``amvlm verify`` finds the study sound. Exit code 1 when one does not.

Commands run as children forked from one warm process, 60 s and 8 GB each, standard input closed; where the start of the
interpreter is the question, as ``python -m amvlm``. Linux only: it counts on fork, /proc and limits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fault_classes import ALL, forks
from fault_classes.place import Place
from fault_classes.registry import FaultClass, Trial
from fault_classes.templates import Templates

from amvlm.errors import printable

KINDS = {"answer": "in a sentence", "outside": "nothing outside", "changed": "unchanged", "verify": "verify clean",
         "cost": "within limits"}  # fmt: skip


@dataclass
class Row:
    """What came of one class."""

    section: int
    title: str
    tried: int = 0
    held: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    peak_mb: float = 0
    slowest_s: float = 0

    @property
    def sound(self) -> bool:
        return not self.failures


def attempt(trial: Trial, templates: Templates, row: Row) -> None:
    """Run one trial in a folder of its own and add to the row what came of it."""
    name, act = trial
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        place = Place(Path(folder), templates)
        try:
            act(place)
            place.conclude()
        except Exception as error:  # noqa: BLE001 - a trial that breaks is a failure to look into, not the end
            place.fault("answer", f"the trial itself broke: {type(error).__name__}: {error}")
        finally:
            for act_afterwards in place.afterwards:
                act_afterwards()
    row.tried += 1
    kinds = {kind for kind, _ in place.faults}
    for kind in KINDS:
        row.held[kind] += kind not in kinds
    row.failures += [(name, kind, text) for kind, text in place.faults]
    row.peak_mb = max([row.peak_mb, *(answer.peak_mb for answer in place.answers)])
    row.slowest_s = max([row.slowest_s, *(answer.seconds for answer in place.answers)])


def show(row: Row, number: int) -> None:
    columns = [f"{held:>3}" if held == row.tried else f"{held:>2}!" for held in row.held.values()]
    print(f"{number:>3} {row.section:>2}  {row.title[:62]:<62} {row.tried:>5} {'  '.join(columns)} "
          f"{row.peak_mb:>7,.0f} {row.slowest_s:>6.1f}", flush=True)  # fmt: skip
    for name, kind, text in row.failures[:40]:
        print(f"          {kind}: {printable(name)}: {printable(text)[:300]}", flush=True)


def run(classes: list[FaultClass], short: bool, member: str, seed_folder: Path) -> list[Row]:
    forks.warm_up()
    templates = Templates(seed_folder / "templates")
    print(f"{'':>3} {'§':>2}  {'class':<62} tried  sentence, outside, unchanged, verify, limits   peak MB  slowest s")
    rows = []
    for number, chosen in enumerate(classes, 1):
        row = Row(chosen.section, chosen.title)
        for trial in islice(chosen.members(), chosen.short if short else None):
            if member in trial[0]:
                attempt(trial, templates, row)
        if row.tried:
            show(row, number)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the first members of each class, slow classes left out")
    parser.add_argument("--json", type=Path, help="also write the table as JSON")
    parser.add_argument("--only", default="", help="classes whose title contains this")
    parser.add_argument("--section", type=int, help="classes of this section")
    parser.add_argument("--member", default="", help="members whose name contains this")
    chosen = parser.parse_args()
    started = time.monotonic()
    classes = [c for c in ALL if chosen.only in c.title and chosen.section in (None, c.section)]
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        rows = run(classes, chosen.short, chosen.member, Path(folder))
    tried, failed = sum(row.tried for row in rows), sum(len({f[0] for f in row.failures}) for row in rows)
    sound = sum(row.sound for row in rows)
    print(f"{sound} of {len(rows)} classes hold; {tried - failed} of {tried} trials; "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    if chosen.json is not None:
        table = [{"section": r.section, "class": r.title, "tried": r.tried, **r.held, "peak_mb": round(r.peak_mb),
                  "slowest_s": round(r.slowest_s, 1), "failures": r.failures} for r in rows]  # fmt: skip
        chosen.json.write_text(json.dumps({"classes": len(rows), "sound": sound, "rows": table}, indent=1), "utf-8")
    sys.exit(sound < len(rows))


if __name__ == "__main__":
    main()
