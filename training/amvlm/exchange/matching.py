"""Which file is the mask of which scan, by the names of folders and files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amvlm.errors import UserError, printable
from amvlm.exchange.accounts import Accounts

_IMAGE_FOLDERS = ("img", "images", "imgs", "imagestr", "imagests")
_MASK_FOLDERS = (
    "labelcol", "ground-truths", "ground_truths", "groundtruths", "masks", "labels", "labelstr", "labelsts",
    "mask", "label", "seg", "segmentation", "segmentations", "annotations", "gt",
)  # fmt: skip
_CONTAINERS = frozenset(
    (*_IMAGE_FOLDERS, *_MASK_FOLDERS, "data", "dicom", "nifti", "nii", "scans", "train", "training", "test", "testing",
     "val", "valid", "validation", "train_folder", "val_folder", "test_folder", "ct", "mr", "mri", "pet", "t1", "t2",
     "flair", "dwi", "adc", "anat", "func")
)  # fmt: skip
"""Folders that say what their files are, not whose."""
_IMAGE_SIDES = ("img/labelcol", "images/ground-truths")
"""Layouts of chest X-ray sets whose captions name the image's own left and right (LViT, QaTa-COV19)."""
_PATIENT = re.compile(r"(sub-[a-z0-9]+|(?:case|patient|pat|subject|volume|vol)[_-]?\d+)(?=[_.-])", re.IGNORECASE)
_MASK_WORDS = (
    "seg|segs|segmentation|label|labels|labelmap|mask|masks|gt|groundtruth|ground_truth|annotation|annotations|"
    "roi|rois|contour|contours"
)
_MASK_NAME = re.compile(rf"(?:(?P<before>.+)[_.\- ])?(?:{_MASK_WORDS})|(?:{_MASK_WORDS})[_.\- ](?P<after>.+)")
_OF_NO_SCAN = "its name says that it is a mask, but no scan here has the rest of its name; is it a scan? Then rename it"
_SCAN_ENDS = ("", "_image", "-image", "_img", "-img", "_scan", "_volume", "_0000")


def stem(path: Path) -> str:
    """A file's name without its suffix, in lower case."""
    name = path.name.lower()
    return name.removesuffix(".nii.gz") if name.endswith(".nii.gz") else path.stem.lower()


@dataclass(frozen=True)
class Placed:
    """A file and what the folders above it say.

    ``home`` is its folder without the one that says "images" or "masks" (``kind``, in lower case): a scan and its mask
    share it. ``unit`` is the part of ``home`` above that folder, where tables lie.
    """

    path: Path
    home: tuple[str, ...]
    unit: tuple[str, ...]
    kind: str = ""

    @property
    def is_mask(self) -> bool:
        return self.kind in _MASK_FOLDERS

    @property
    def place(self) -> str:
        """How a person finds it below the source; "" at the top."""
        return "/".join((*self.home, self.path.name)) if self.home else ""


def placed(path: Path, source: Path) -> Placed:
    """Read the folders between a source and one of its files."""
    folders = path.relative_to(source).parts[:-1]
    for number, name in enumerate(folders):
        if name.lower() in (*_IMAGE_FOLDERS, *_MASK_FOLDERS):
            return Placed(path, folders[:number] + folders[number + 1 :], folders[:number], name.lower())
    return Placed(path, folders, folders)


def scans_and_masks(files: Iterable[Placed], accounts: Accounts) -> list[tuple[Placed, Path | None]]:
    """Every scan with its mask, if any; a mask without a scan, or one of two for a scan, is refused by name.

    A mask lies in a folder for masks under the scan's own name (or ``mask_<name>``), or beside the scan and is called
    ``<name>_seg``, ``<name>-mask``, ``<name>.label``, …, or just ``segmentation`` where there is one scan.
    """
    homes: dict[tuple[str, ...], list[Placed]] = {}
    for file in files:
        homes.setdefault(file.home, []).append(file)
    return [pair for members in homes.values() for pair in _pairs(members, accounts)]


def _pairs(members: Sequence[Placed], accounts: Accounts) -> list[tuple[Placed, Path | None]]:
    """The scans of one home, and the masks that go with them."""
    foldered: dict[str, list[Path]] = {}
    for file in members:
        if file.is_mask:
            foldered.setdefault(stem(file.path), []).append(file.path)
    named = {file for file in members if not file.is_mask and _is_named_mask(file, foldered)}
    scans = [file for file in members if not file.is_mask and file not in named]
    by_stem: dict[str, list[Placed]] = {}
    for scan in scans:
        by_stem.setdefault(stem(scan.path), []).append(scan)
    masks = {
        alike[0].path: foldered.pop(f"mask_{name}", []) + foldered.pop(name, []) for name, alike in by_stem.items()
    }
    for paths in foldered.values():
        for path in paths:
            accounts.leave_out(path, "its folder says that it is a mask, but there is no scan of this name")
    for file in (file for file in members if file in named):
        of = _scan_of(file, by_stem, scans)
        if of is None:
            accounts.leave_out(file.path, _OF_NO_SCAN, "refused")
        else:
            masks.setdefault(of.path, []).append(file.path)
    for path in (path for paths in masks.values() if len(paths) > 1 for path in paths):
        accounts.leave_out(path, "one scan has several masks; keep one, and name its values", "refused")
    only = {scan: paths[0] for scan, paths in masks.items() if len(paths) == 1}
    return [(scan, only.get(scan.path)) for scan in scans]


def _is_named_mask(file: Placed, foldered: Mapping[str, list[Path]]) -> bool:
    """Whether a file's own name says that it is a mask; one that has a mask in a folder for masks is a scan."""
    name = stem(file.path)
    return bool(_MASK_NAME.fullmatch(name)) and name not in foldered and f"mask_{name}" not in foldered


def _scan_of(file: Placed, by_stem: dict[str, list[Placed]], scans: Sequence[Placed]) -> Placed | None:
    match = _MASK_NAME.fullmatch(stem(file.path))
    base = match and (match["before"] or match["after"])
    if not base:
        return scans[0] if len(scans) == 1 else None
    matching = [scan for end in _SCAN_ENDS for scan in by_stem.get(f"{base}{end}", [])]
    return matching[0] if len(matching) == 1 else None


def without_namesakes(scans: Sequence[Placed], accounts: Accounts) -> list[Placed]:
    """Leave out scans that share a name in one folder: which one a mask or a caption means cannot be known.

    Raises
    ------
    UserError
        If that folder is the source itself.
    """
    counts = Counter((scan.home, stem(scan.path)) for scan in scans)
    kept = []
    for scan in scans:
        if counts[scan.home, stem(scan.path)] == 1:
            kept.append(scan)
        elif not scan.home:
            raise UserError(f"two images are called {printable(stem(scan.path))[:80]!r}", file=scan.path.parent,
                            remedy="Keep one of them, or rename it.")  # fmt: skip
        else:
            accounts.leave_out(scan.path, "another image has the same name; keep one of them", "refused")
    return kept


def names_image_sides(files: Iterable[Placed]) -> set[tuple[str, ...]]:
    """The units whose folders are called as in sets whose captions name the image's left and right."""
    kinds: dict[tuple[str, ...], set[str]] = {}
    for file in files:
        kinds.setdefault(file.unit, set()).add(file.kind)
    return {unit for unit, found in kinds.items() if any(set(pair.split("/")) <= found for pair in _IMAGE_SIDES)}


def patient_in(name: str) -> str:
    """The part of a file or folder name that several images of one patient share; "" where nothing tells."""
    found = _PATIENT.match(f"{name}.")
    return found.group(1).lower() if found else ""


def patient_folders(folders: Sequence[tuple[str, ...]]) -> list[str]:
    """Whose images each folder holds: a part that looks like a patient, else the first that sets folders apart.

    Parameters
    ----------
    folders : sequence of tuple of str
        The folders between the source and each image.

    Returns
    -------
    list of str
        "" where the folders say nothing.
    """
    shared = 0
    while folders and all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    found = []
    for parts in folders:
        own = [part.lower() for part in parts[shared:] if part.lower() not in _CONTAINERS]
        found.append(next(filter(None, map(patient_in, own)), own[0] if own else ""))
    return found
