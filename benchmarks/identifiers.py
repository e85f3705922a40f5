"""Identifiers planted everywhere, then looked for everywhere: python benchmarks/identifiers.py

Scans of every format carry words in every corner of their format: text chunks before and after the pixels, EXIF,
private chunks, bytes behind the end, JPEG comments and IPTC, WebP XMP, TIFF tags, NIfTI descrip, aux_file and
extensions, gzip names, NRRD keys and remarks, MetaImage comments, DICOM tags. So do the names of their files and
folders, of the user and of the host. The commands import, judge, train, assess and export them. Then every byte of the
study (logs, events, TensorBoard, models, cards) and of the exports is searched, compressed files and pictures unpacked
too. Original names may stand in the private list in the user's data folder alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from fault_classes import forks, makers, planted
from fault_classes.forks import Answer
from fault_classes.makers import TINY
from fault_classes.place import unpacked
from fault_classes.planted import word

SURROUNDINGS = dict.fromkeys(("USER", "LOGNAME", "USERNAME", "LNAME"), word("user"))


def make_sources(folder: Path) -> list[Path]:
    """One folder for each format, named by a planted word."""
    sources = []
    for make in (*planted.PICTURES.values(), *planted.VOLUMES.values()):
        source = folder / f"{word('folder')} {len(sources):02d}"
        source.mkdir(parents=True)
        made = make(source)
        if made:
            path = source / str(made)
            path.rename(path.with_name(f"{word('file')}{len(sources)}{path.suffix}"))
        sources.append(source)
    trained = makers.msd(folder / word("msd"), 6)
    for path in [*trained.rglob("scan_*.nii.gz")]:
        path.rename(path.with_name(path.name.replace("scan_", f"{word('scan')}_")))
    description = trained / "dataset.json"
    text = description.read_text().replace("scan_", f"{word('scan')}_")
    description.write_text(text.replace('"trunk"', f'"{word("dataset")}"'))
    return [trained, *sources]


def search(folder: Path) -> dict[str, set[str]]:
    """Where a planted word stands: path below ``folder`` → the words."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*")):
        words = planted.words_in(os.fsencode(path.relative_to(folder)))
        if path.is_file():
            words |= planted.words_in(unpacked(path))
        if words:
            found[str(path.relative_to(folder))] = words
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    started = time.monotonic()
    forks.warm_up()
    with tempfile.TemporaryDirectory(prefix="identifiers-") as temporary:
        folder = Path(temporary)
        study, out, home, work = folder / "study", folder / "out", folder / "home", folder / "work"
        work.mkdir()
        printed: list[str] = []
        environment = {
            **SURROUNDINGS,
            "HOME": str(home),
            "XDG_DATA_HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
        }

        def amvlm(*arguments: object, fine: bool = True) -> Answer:
            answer = forks.in_fork([str(a) for a in arguments], folder / f"said{len(printed)}", cwd=work,
                                   environment=environment, seconds=300,
                                   prepare=lambda: forks.rename_host(word("host")))  # fmt: skip
            printed.append(answer.text)
            assert answer.code == 0 or not fine, answer.text
            return answer

        sources = make_sources(folder / "sources")
        amvlm("import", sources[0], "--into", study, "--split", "train", "--accept-fraction", "0.5")
        for source in sources[1:]:
            amvlm("import", source, "--into", study, "--split", "train")
        amvlm("judge", study, "case-00001", "liver", "absent", fine=False)
        from amvlm.store import LabelStore

        cases = len(LabelStore(study).cases())
        amvlm("train", study, "--name", "own", "--run-name", "first", *TINY)
        amvlm("quality", study, "--model", "own", "--json", out.with_suffix(".json"))
        for suffix in (".nii.gz", ".nrrd", ".mha"):
            amvlm("export", study, folder / f"out{suffix.replace('.', '-')}", "--suffix", suffix)
        amvlm("verify", study)
        where = {"study": search(study), "home": search(home)}
        for path in [*folder.glob("out*")]:
            words = planted.words_in(path.read_bytes()) if path.is_file() else set()
            where[path.name] = search(path) if path.is_dir() else {path.name: words} if words else {}
        private = [name for name in where["home"] if Path(name).name.startswith("names-")]
        where["home"] = {name: words for name, words in where["home"].items() if name not in private}
    failed = sum(map(len, where.values()))
    everywhere = sorted({word for places in where.values() for found in places.values() for word in found})
    print(f"{len(sources)} sources, {cases} cases; found in {failed} files: {', '.join(everywhere) or 'nothing'}; "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    for part, places in where.items():
        for name, found in places.items():
            print(f"    {part}/{name}: {', '.join(sorted(found))}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
