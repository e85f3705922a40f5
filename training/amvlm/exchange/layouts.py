"""What lies on disk: the MSD, LViT, Kaggle, DICOM and plain folder layouts, read into one list of items."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from amvlm.errors import UserError
from amvlm.exchange.accounts import Accounts
from amvlm.exchange.descriptions import MsdEntry, read_label_names, read_msd
from amvlm.exchange.folders import list_files
from amvlm.exchange.matching import (
    names_image_sides,
    patient_folders,
    patient_in,
    placed,
    scans_and_masks,
    stem,
    without_namesakes,
)
from amvlm.exchange.spreadsheets import TABLE_SUFFIXES
from amvlm.exchange.tables import Captions, split_by_structure
from amvlm.imaging import Volume, read_volume
from amvlm.imaging.dicom import read_series
from amvlm.imaging.dicom_headers import DicomSeries, is_dicom, scan_folder, series_of_file
from amvlm.imaging.readers import is_image_name
from amvlm.paths import check_encodable, check_regular

_SPINE = ("S", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9")
MRSPINESEG = {
    **{value: (f"{'sacrum' if name == 'S' else f'{name} vertebra'}", name) for value, name in enumerate(_SPINE, 1)},
    **{
        value: (f"{upper}/{lower} disc", f"{upper}/{lower}")
        for value, (lower, upper) in enumerate(itertools.pairwise(_SPINE), 11)
    },
}
"""Values of the MRSpineSeg masks: ten vertebrae (S to T9), then nine discs (L5/S to T9/T10), with their short names."""


@dataclass(frozen=True)
class Item:
    """One image, its mask file if any, and its captions if any.

    ``caption`` speaks of the whole image; ``by_structure`` holds one caption per structure instead; ``laterality`` says
    whose left and right they name. Of a DICOM series ``image`` is the folder. ``place`` is where a nested image lies
    below the source ("" at the top), ``group`` the patient whose folder it is.
    """

    image: Path
    mask: Path | None = None
    caption: str = ""
    by_structure: Mapping[str, str] = field(default_factory=dict)
    series: DicomSeries | None = None
    laterality: str = "patient"
    place: str = ""
    group: str = ""

    def read(self) -> Volume:
        """The image; see :func:`amvlm.imaging.read_volume` for what is refused."""
        return read_volume(self.image) if self.series is None else read_series(self.series)

    @property
    def name(self) -> str:
        """How the person knows this image."""
        return (self.place or self.image.name) + ("" if self.series is None else f" (series {self.series.number})")

    @property
    def files(self) -> list[Path]:
        """The files that hold the image."""
        return [self.image] if self.series is None else list(dict.fromkeys(f.path for f in self.series.frames))

    @property
    def patient(self) -> str:
        """What DICOM says; else whose folder it is; else what several file names share; "" where nothing tells."""
        identifier = self.series.patient if self.series else ""
        nested = stem(self.image) if self.place and self.series is None else ""  # T1/x and T2/x are one patient's
        return identifier or self.group or patient_in(self.image.name) or nested


@dataclass(frozen=True)
class Layout:
    """A recognised folder: its items and what its mask values mean (value → structure).

    ``structures`` maps each structure to its short name or "". ``values`` is empty for masks that hold one structure,
    wherever they are above 0. ``accounts`` has seen every file of the folder.
    """

    kind: str
    items: list[Item]
    accounts: Accounts
    structures: dict[str, str] = field(default_factory=dict)
    values: dict[int, str] = field(default_factory=dict)
    modality: str = ""
    unused_captions: int = 0


def read_layout(source: Path, structure: str, labels: str = "") -> Layout:
    """Recognise a folder (or one image file) and list its items, in order of their names.

    Parameters
    ----------
    source : Path
    structure : str
        What masks without names of their own outline; empty for the layout's usual one.
    labels : str
        What the masks' values mean: a JSON file {"1": "name", …}, or "mrspineseg". Empty: ``labels.json`` in the
        folder if there is one, else a mask holds one structure.

    Raises
    ------
    UserError
        If nothing is there, or names are ambiguous.
    """
    accounts = Accounts(source)
    if not os.path.lexists(source):
        raise UserError("there is no such folder", file=source, remedy="Check the name.")
    if not check_encodable(check_regular(source)).is_dir():
        return _one_file(source, accounts)
    files = list_files(source, accounts)
    for description in (source / "dataset.json", source / "labels.json"):
        if description in accounts.refused_in(source):
            raise UserError("what the masks mean cannot be read: it is a link out of the folder, or no plain file",
                            file=description, remedy="Copy it into the folder.")  # fmt: skip
    if source / "dataset.json" in files:
        return _msd(source, files, accounts)
    series = _dicom_items(source, files, accounts)
    return _pictures(source, files, series, structure or "target", labels, accounts)


def _one_file(source: Path, accounts: Accounts) -> Layout:
    item = Item(source)
    if not is_image_name(source.name) and is_dicom(source):
        item = Item(source.parent, series=series_of_file(source))
    for path in item.files:
        accounts.see(path)
    return Layout("one image" if item.series is None else "DICOM", [item], accounts)


# -- DICOM ----------------------------------------------------------------------------------------------------------


def _dicom_items(source: Path, files: Sequence[Path], accounts: Accounts) -> list[Item]:
    """Every series in a folder and its subfolders; a folder of which a part cannot be read is refused."""
    folders: dict[Path, list[Path]] = {}
    for path in files:
        if not is_image_name(path.name) and path.suffix.lower() not in TABLE_SUFFIXES:
            folders.setdefault(path.parent, []).append(path)
    found = []
    for folder, among in folders.items():
        members = [path for path in among if is_dicom(path)]
        try:
            if members:
                found += [_series_item(source, folder, s) for s in _series_in(folder, members, among, accounts)]
        except UserError as error:
            accounts.settle("refused", members, f"{accounts.place(folder)}: its DICOM series are refused; {error}")
    return found


def _series_in(folder: Path, members: Sequence[Path], among: Sequence[Path], accounts: Accounts) -> list[DicomSeries]:
    """The series of a folder's files, none of which leads out of the source; what is no slice is left out by name."""
    suffixes = {path.suffix.lower() for path in members}
    lost = [path for path in accounts.refused_in(folder) if path.suffix.lower() in suffixes]
    if lost:
        raise UserError("this file may be one of its slices, and cannot be used", file=lost[0],
                        remedy="Copy the folder again, so that no slice is lost.")  # fmt: skip
    kept = []
    scanned = scan_folder(folder, among)
    for left in scanned.left_out:
        accounts.leave_out(left.path, left.reason)
    for series in scanned.series:
        paths = list(dict.fromkeys(frame.path for frame in series.frames))
        if series.modality in ("SEG", "RTDOSE"):
            where = accounts.place(paths[0])
            accounts.settle("refused", paths, f"{where}: this DICOM object is no scan ({series.modality}).")
        else:
            kept.append(series)
    return kept


def _series_item(source: Path, folder: Path, series: DicomSeries) -> Item:
    return Item(folder, series=series, place=folder.relative_to(source).as_posix() if folder != source else "")


# -- Medical Segmentation Decathlon ---------------------------------------------------------------------------------


def _msd(source: Path, files: Sequence[Path], accounts: Accounts) -> Layout:
    path = source / "dataset.json"
    description = read_msd(path)
    accounts.settle("table", [path])
    usable, taken = set(files) - {path}, set[Path]()
    items = []
    for entry in description.entries:
        try:
            item = _msd_item(entry, source, usable, taken)
        except UserError as error:
            accounts.settle("refused", (), f"an entry of dataset.json: {error}")
        else:
            taken |= {item.image, *filter(None, [item.mask])}
            items.append(item)
    for file in sorted(usable - taken):
        accounts.leave_out(file, "dataset.json does not name it for training")
    structures = {name: description.full_name(name) for name in description.names.values()}
    return Layout(
        "MSD", _with_groups(source, sorted(items, key=lambda item: item.image.name)), accounts,
        {full: short for short, full in structures.items()},
        {value: structures[name] for value, name in description.names.items()},
        modality=description.modality,
    )  # fmt: skip


def _msd_item(entry: MsdEntry, source: Path, usable: set[Path], taken: set[Path]) -> Item:
    image, mask = entry.paths(source)
    if image not in usable:
        raise UserError("there is no such file", file=image, remedy="Check the name and the folder.")
    if image in taken or mask in taken or image == mask:
        raise UserError("it is named twice", file=image, remedy="Keep one entry for each image and mask.")
    return Item(image, mask if mask in usable else None)


# -- folders of images ----------------------------------------------------------------------------------------------


def _pictures(source: Path, files: Sequence[Path], series: list[Item], structure: str, labels: str,
              accounts: Accounts) -> Layout:  # fmt: skip
    """A folder of images; one with a folder of images, one of masks and tables of captions; and folders of these."""
    images = [placed(path, source) for path in files if is_image_name(path.name)]
    pairs = scans_and_masks(images, accounts)
    values = _values(source, labels, accounts)
    captions = Captions(source, files, [scan for scan, _ in pairs], accounts)
    if captions or any(mask for _, mask in pairs):
        kept = set(without_namesakes([scan for scan, _ in pairs], accounts))
        pairs = [pair for pair in pairs if pair[0] in kept]
    structures = dict(values.values()) if values else {}
    if not values and (captions or any(mask for _, mask in pairs)):
        structures = {structure: ""}
    aliases = {name: [short] if short else [] for name, short in structures.items()}
    sides = names_image_sides(images)
    items = []
    for scan, mask in pairs:
        caption = captions.of(scan, mask)
        parts = split_by_structure(caption, aliases) if values and caption else None
        items.append(Item(scan.path, mask, "" if parts is not None else caption, parts or {},
                          laterality="image" if scan.unit in sides else "patient", place=scan.place))  # fmt: skip
    _leave_out_the_rest(files, series, accounts)
    if not items and not series and not accounts.refused:
        raise UserError("the folder holds no image", file=source, remedy="Choose the folder that holds the scans.")
    kind = "pictures" if any(file.is_mask for file in images) else "folder" if items or not series else "DICOM"
    return Layout(
        kind, _with_groups(source, items + series), accounts, structures,
        {value: name for value, (name, _) in values.items()}, unused_captions=captions.unused,
    )  # fmt: skip


def _values(source: Path, labels: str, accounts: Accounts) -> dict[int, tuple[str, str]]:
    """Mask value → (structure, its short name)."""
    own = source / "labels.json"
    if not labels and accounts.saw(own):
        accounts.settle("table", [own])
        return {value: (name, "") for value, name in read_label_names(own).items()}
    if labels and accounts.saw(own) and Path(labels) != own:
        accounts.leave_out(own, "the names of the values were given otherwise")
    if labels.lower() == "mrspineseg":
        return MRSPINESEG
    if labels and accounts.saw(Path(labels)):
        accounts.settle("table", [Path(labels)])
    return {value: (name, "") for value, name in read_label_names(Path(labels)).items()} if labels else {}


def _leave_out_the_rest(files: Iterable[Path], series: Iterable[Item], accounts: Accounts) -> None:
    of_series = {path for item in series for path in item.files}
    for path in files:
        if not is_image_name(path.name) and path not in of_series and not accounts.settled(path):
            accounts.leave_out(path, "not an image")


def _with_groups(source: Path, items: Sequence[Item]) -> list[Item]:
    """The items with the patient that their folders tell; DICOM's identifier counts for a folder that has one."""
    folders = [(i.image.parent if i.series is None else i.image).relative_to(source).parts for i in items]
    groups = patient_folders(folders)
    identifiers: dict[str, set[str]] = {}
    for item, group in zip(items, groups, strict=True):
        if item.series is not None and item.series.patient:
            identifiers.setdefault(group, set()).add(item.series.patient)
    only = {group: next(iter(found)) for group, found in identifiers.items() if group and len(found) == 1}
    return [replace(item, group=only.get(group, group)) for item, group in zip(items, groups, strict=True)]
