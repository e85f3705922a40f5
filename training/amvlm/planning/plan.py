"""The plan: how one network reads, learns and answers on one study (METHOD §8); part of a model's ``config.json``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from amvlm.planning.fingerprint import Facts, Intensities

OTHER = "no CT"
"""The modality of a scan beside CT that names none and holds nothing below zero."""
Mm = Annotated[float, Field(ge=0, le=100_000)]
Side = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=1, le=2048)]
Step = Annotated[int, Field(ge=1, le=4)]
WIDTHS = (32, 64, 128, 256)
"""Channels of the half-resolution U-Net by level, unless the minutes ask for fewer."""


class Reason(Facts):
    """Why something was chosen, as a sentence."""

    choice: str
    value: str
    why: str
    notable: bool = Field(False, description="said before a run: something in the study deserves a look")


class Normalisation(Facts):
    """CT: clipped and scaled by the study's foreground, since its units mean the same in every scan. Others: z-score
    of each scan by itself."""

    modalities: tuple[str, ...] = Field((), description="that the study's scans name")
    foreground: Intensities | None = Field(None, description="of the study's CT")

    def for_scan(self, modality: str, below_zero: bool = True) -> Intensities | None:
        """What a scan of this modality is scaled by; None: by itself.

        A scan that names none is as all of the study: beside CT alone it is one, if values lie below zero as those of
        air and fat do.
        """
        of_ct = "CT" in self.modalities and set(self.modalities) <= {"CT", OTHER}
        is_ct = modality == "CT" or (not modality and below_zero and of_ct)
        return self.foreground if is_ct else None


class Plan(Facts):
    """Everything inference needs to repeat what training did; axes are slices, rows, columns."""

    version: Literal[1] = 1
    dimensions: Literal[2, 3] = 2
    axis: Literal[0, 1, 2] = 2
    spacing_mm: tuple[Mm, Mm, Mm] = Field(description="of the grid; 0 for slices that stay as they are (2-D)")
    patch: tuple[Side, Side, Side] = Field(description="planes (1 in 2-D), rows, columns")
    context: int = Field(0, ge=0, le=2, description="neighbours on each side read as further channels (2-D)")
    channels: Literal[1, 3] = 1
    region_mm: tuple[Mm, Mm, Mm] | None = Field(
        None, description="box around all structures in which crops are drawn and answers are given; None: everywhere"
    )
    normalisation: Normalisation = Field(default_factory=Normalisation)
    network: Literal["half_unet", "dynunet"] = "half_unet"
    widths: tuple[Width, ...] = Field(WIDTHS, min_length=2, max_length=8)
    decoder: Literal["concat", "sum"] = Field(
        "concat", description="half_unet: coarse features beside the fine ones, or narrowed and added to them"
    )
    strides: tuple[tuple[Step, Step, Step], ...] = Field((), max_length=7, description="dynunet: steps between levels")
    exclusive: bool = True
    structures: tuple[str, ...] = Field(min_length=1, max_length=1000)
    largest_part: tuple[bool, ...] = Field(description="per structure: keep the largest connected part alone")
    mirror: tuple[bool, bool] = Field(
        (False, False),
        description="whether rows, columns are mirrored in training; off, since anatomy has sides (ACDC at 120 CPU-"
        "seconds: 0.758 with it, 0.800 without)",
    )
    any_angle: float = Field(0.0, ge=0, le=0.6, description="share of the patches turned by any angle in training")
    recipe: Literal["labelled", "two_phase"] = "labelled"
    batch_size: int = Field(8, ge=2)
    steps: int = Field(ge=1, description="over all phases")
    minutes: float = Field(gt=0)
    reasons: tuple[Reason, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Plan:
        """A plan may be a stranger's: what the networks are built from must agree."""
        if len(self.largest_part) != len(self.structures):
            raise ValueError("largest_part must say something of every structure")
        if self.dimensions == 2 and (self.patch[0] != 1 or self.spacing_mm[0] != 0):
            raise ValueError("a 2-D patch is one plane, on slices as they are")
        if min(self.spacing_mm[1:]) <= 0 or (self.dimensions == 3 and self.spacing_mm[0] <= 0):
            raise ValueError("a spacing is missing")
        if self.network == "dynunet" and len(self.strides) != len(self.widths) - 1:
            raise ValueError("there must be a step between each two levels")
        if self.dimensions == 3 and (self.network != "dynunet" or self.channels != 1):
            raise ValueError("a 3-D network is a DynUNet on grey volumes")
        return self

    @property
    def inputs(self) -> int:
        """Channels that the network reads."""
        return self.channels * (2 * self.context + 1) if self.dimensions == 2 else 1

    @property
    def outputs(self) -> int:
        """Channels of its logits: exclusive structures share a softmax with the background, which comes first."""
        return len(self.structures) + (1 if self.exclusive else 0)

    def sentence(self) -> str:
        """The plan in one line, as the run's first note says it."""
        return f"{self._reads()}, {self.steps:,} steps of {self.batch_size}, about {_minutes(self.minutes)}"

    def in_short(self, device: str) -> str:
        """The plan before a start: what is read, and how long it takes on which device (a fingerprint's)."""
        return f"{self._reads()}, about {_minutes(self.minutes)} on this {'CPU' if device == 'cpu' else 'GPU'}"

    def _reads(self) -> str:
        planes, rows, columns = self.patch
        patch = f"{rows}×{columns}" if self.dimensions == 2 else f"{planes}×{rows}×{columns}"
        spacing = self.spacing_mm[1:] if self.dimensions == 2 else self.spacing_mm
        shown = " × ".join(f"{mm:.3g}" for mm in dict.fromkeys(spacing))
        return f"{self.dimensions}-D, {shown} mm, patches of {patch}"


def _minutes(minutes: float) -> str:
    if round(minutes) >= 120:
        return f"{minutes / 60:.3g} hours"
    return "a minute" if round(minutes) <= 1 else f"{round(minutes)} minutes"
