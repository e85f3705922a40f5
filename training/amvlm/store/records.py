"""What the index of a store holds, as immutable records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from amvlm.text import mentions

State = Literal["unknown", "draft", "accepted", "absent", "rejected", "skipped"]
Mark = Literal["unknown", "rejected", "skipped"]
Source = Literal["text mask", "prediction", "merged", "by hand", "imported"]
Split = Literal["train", "val", "test"]
Kind = Literal["accepted", "absent", "withdrawn"]
Laterality = Literal["patient", "image"]


@dataclass(frozen=True)
class Case:
    """One image of the study.

    ``group`` is the patient, for splits. ``source_laterality`` is provenance: whose left and right the captions named
    where they came from. In the study every caption names the patient's.
    """

    case_id: str
    group: str
    split: Split
    modality: str
    source_laterality: Laterality
    image_sha256: str
    image_file: str
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    sides_known: bool
    planar: bool


@dataclass(frozen=True)
class NewCase:
    """A case to be added by an import; its id is allotted in the transaction that adds it.

    Parameters
    ----------
    patient : str
        What several images of one patient share in this import; "" for a patient of its own. It is not kept.
    image_sha256, image_suffix : str
        Of a file that ``store.images.add`` keeps already.
    captions : tuple of (structure or None, text)
        In the patient's sides.
    references, labels : mapping
        Structure → hash of a mask that ``store.masks.add`` keeps already: expert masks to measure with, never trained
        on; and labels that are accepted as imported.
    """

    patient: str
    split: Split
    modality: str
    source_laterality: Laterality
    image_sha256: str
    image_suffix: str
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    sides_known: bool
    planar: bool
    captions: tuple[tuple[str | None, str], ...] = ()
    references: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Structure:
    """Something to outline; ``prompts`` are the wordings that were used for it."""

    name: str
    aliases: tuple[str, ...] = ()
    colour: str = "#e6550d"
    prompts: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The wording that stands for the structure where nobody typed one."""
        return self.prompts[0] if self.prompts else self.name

    def named_in(self, prompt: str) -> bool:
        """True for the structure's own wording, or a prompt that contains its name as words."""
        return mentions(prompt, (self.name, *self.aliases), self.prompts)


@dataclass(frozen=True)
class Revision:
    """One judgement of a whole volume for one structure; never changed once written.

    ``kind`` is "accepted" (with a mask), "absent" or "withdrawn" (an undo back to nothing).
    """

    revision_id: int
    case_id: str
    structure: str
    kind: Kind
    mask_sha256: str | None
    prompt: str
    source: Source
    model_fingerprint: str
    parent: int | None
    edited_voxels: int
    author: str
    time: str


@dataclass(frozen=True)
class Quality:
    """What a model's pseudo-label of a case and structure looks like (METHOD §5); the newest model's replaces older.

    Parameters
    ----------
    expected_dice : float in [0, 1], or None
        Calibrated on cases that no network trained on; None where nothing could be calibrated.
    agreement, soft_dice, confidence, foreground : float in [0, 1]
    entropy : float, bits per voxel of the mask
    components : int
    flags : tuple of str
        What to look at first.
    distance : float or None
        1 − cosine to the nearest judged case's image embedding.
    """

    case_id: str
    structure: str
    model_fingerprint: str
    expected_dice: float | None
    agreement: float
    soft_dice: float
    confidence: float
    entropy: float
    foreground: float
    components: int
    flags: tuple[str, ...]
    distance: float | None
    time: str = ""


@dataclass(frozen=True)
class Snapshot:
    """The labels as they stood at one moment: the accepted and absent revisions a run learns from."""

    store_id: str
    revisions: tuple[Revision, ...]

    def by_case(self) -> dict[str, dict[str, Revision]]:
        """Case id → structure → revision."""
        grouped: dict[str, dict[str, Revision]] = {}
        for revision in self.revisions:
            grouped.setdefault(revision.case_id, {})[revision.structure] = revision
        return grouped
