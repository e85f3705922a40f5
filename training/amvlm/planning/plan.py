"""The plan: how one network reads, learns and answers on one study (METHOD §8); part of a model's ``config.json``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from amvlm.planning.fingerprint import Facts, Intensities

WIDTHS = (32, 64, 128, 256)
"""Channels of the half-resolution U-Net by level, unless the minutes ask for fewer."""


class Reason(Facts):
    """Why something was chosen, as a sentence."""

    choice: str
    value: str
    why: str


class Normalisation(Facts):
    """CT: clipped and scaled by the study's foreground, since its units mean the same in every scan. Others: z-score
    of each scan by itself."""

    modalities: tuple[str, ...] = Field((), description="that the study's scans name")
    foreground: Intensities | None = Field(None, description="of the study's CT")

    def for_scan(self, modality: str) -> Intensities | None:
        """What a scan of this modality is scaled by; None: by itself. A scan that names none is as all of the study."""
        is_ct = modality == "CT" or (not modality and self.modalities == ("CT",))
        return self.foreground if is_ct else None


class Plan(Facts):
    """Everything inference needs to repeat what training did; axes are slices, rows, columns."""

    version: Literal[1] = 1
    dimensions: Literal[2, 3] = 2
    axis: Literal[0, 1, 2] = 2
    spacing_mm: tuple[float, float, float] = Field(description="of the grid; 0 for slices that stay as they are (2-D)")
    patch: tuple[int, int, int] = Field(description="planes (1 in 2-D), rows, columns")
    context: int = Field(0, ge=0, le=2, description="neighbours on each side read as further channels (2-D)")
    channels: Literal[1, 3] = 1
    region_mm: tuple[float, float, float] | None = Field(
        None, description="box around all structures in which crops are drawn and answers are given; None: everywhere"
    )
    normalisation: Normalisation = Field(default_factory=Normalisation)
    network: Literal["half_unet", "dynunet"] = "half_unet"
    widths: tuple[int, ...] = Field(WIDTHS, min_length=2)
    strides: tuple[tuple[int, int, int], ...] = Field((), description="dynunet: steps between levels")
    exclusive: bool = True
    structures: tuple[str, ...] = Field(min_length=1)
    largest_part: tuple[bool, ...] = Field(description="per structure: keep the largest connected part alone")
    mirror: tuple[bool, bool] = Field(
        (False, False),
        description="whether rows, columns are mirrored in training; off, since anatomy has sides (ACDC at 120 CPU-"
        "seconds: 0.758 with it, 0.800 without)",
    )
    recipe: Literal["labelled", "two_phase"] = "labelled"
    batch_size: int = Field(8, ge=2)
    steps: int = Field(ge=1, description="over all phases")
    minutes: float = Field(gt=0)
    reasons: tuple[Reason, ...] = ()

    @property
    def inputs(self) -> int:
        """Channels that the network reads."""
        return self.channels * (2 * self.context + 1) if self.dimensions == 2 else 1

    @property
    def outputs(self) -> int:
        """Channels of its logits: exclusive structures share a softmax with the background, which comes first."""
        return len(self.structures) + (1 if self.exclusive else 0)

    def sentence(self) -> str:
        """The plan in one line, as the run's first note and the window say it."""
        planes, rows, columns = self.patch
        patch = f"{rows}×{columns}" if self.dimensions == 2 else f"{planes}×{rows}×{columns}"
        spacing = self.spacing_mm[1:] if self.dimensions == 2 else self.spacing_mm
        shown = " × ".join(f"{mm:.3g}" for mm in dict.fromkeys(spacing))
        return (
            f"{self.dimensions}-D, {shown} mm, patches of {patch}, {self.steps:,} steps of {self.batch_size}, "
            f"about {_minutes(self.minutes)}"
        )


def _minutes(minutes: float) -> str:
    return "a minute" if round(minutes) <= 1 else f"{round(minutes)} minutes"
