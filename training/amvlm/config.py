"""Every setting, once: title, unit and range. The form, the flags and the run's JSON are built from here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amvlm.errors import UserError

DEMO_MINUTES = 3.0
"""Of the demo's training, so that the whole loop takes five at most on two cores."""
Device = Literal[
    "auto", "cpu", "mps", "cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cuda:5", "cuda:6", "cuda:7"
]  # fmt: skip
Channels = tuple[Annotated[int, Field(ge=1, le=2048)], ...]


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderSettings(Settings):
    """Which encoders the vision-language model is built from."""

    image_encoder: str = Field(
        "tiny", title="Image encoder", max_length=4096,
        description="tiny, efficientnet-lite0, litemedsam, small, paper, a hub id (owner/name@revision) or a folder",
    )  # fmt: skip
    text_encoder: str = Field(
        "tiny", title="Text encoder", max_length=4096,
        description="tiny, minilm, small, paper, a hub id (owner/name@revision) or a folder",
    )  # fmt: skip
    image_size: int = Field(112, title="Image size (px)", ge=16, le=1024, multiple_of=8)
    embedding_size: int = Field(128, title="Embedding size", ge=8, le=1024)

    def for_the_record(self) -> EncoderSettings:
        """As a run and a model keep them: of an encoder in a folder, the folder's name without its path."""
        return self.model_copy(
            update={name: _without_path(getattr(self, name)) for name in ("image_encoder", "text_encoder")}
        )

    def completed(self, given: EncoderSettings) -> EncoderSettings:
        """Recorded settings, with folders taken from those given again.

        Raises
        ------
        UserError
            If a folder was recorded and none is given.
        """
        changed = {}
        for name in ("image_encoder", "text_encoder"):
            recorded, again = getattr(self, name), getattr(given, name)
            if recorded.startswith(_LOCAL):
                if _without_path(again) != recorded:
                    raise UserError(
                        f"this run's {name.replace('_', ' ')} is from the folder {recorded.removeprefix(_LOCAL)!r}",
                        remedy=f"Name that folder again: --{name.replace('_', '-')} FOLDER",
                    )
                changed[name] = again
        return self.model_copy(update=changed)


_LOCAL = "folder: "
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+(@[\w.-]+)?)?")


def _without_path(encoder: str) -> str:
    if encoder.startswith(_LOCAL) or (_HUB_ID.fullmatch(encoder) and not Path(encoder).exists()):
        return encoder
    return _LOCAL + Path(encoder).name


class GeneratorSettings(Settings):
    """The text mask generator (METHOD §3)."""

    form: Literal["film_unet", "frozen_linear"] = Field("film_unet", title="Text mask generator")
    network: Literal["basic_unet", "unet"] = Field("basic_unet", title="Network of film_unet")
    channels: Channels = Field((16, 16, 32, 64, 128), title="U-Net channels by level", min_length=2, max_length=8)
    position: bool = Field(True, title="Features know their place", description="so that a text can name one")
    pamr_iterations: int = Field(0, title="PAMR iterations", ge=0, le=50)


class PlannedTextSettings(Settings):
    """The text mask generator of a run by minutes, on the plan's grid."""

    patch_features: bool = Field(
        True, title="Its bottleneck reads the VLM's patches", description="off: an ablation, by minutes"
    )
    similarity: bool = Field(
        True, title="Its decoder reads patch-text similarity", description="off: an ablation, by minutes"
    )
    film_levels: bool = Field(
        True, title="Text at the bottleneck and every decoder level", description="off: at the last level, by minutes"
    )


class StudentSettings(Settings):
    """The segmentation network that needs no text."""

    network: str = Field(
        "auto",
        title="Network",
        description="auto: basic_unet, in 3-D unet; or efficientnet-lite0, efficientnet-b0, resnet18 …",
        max_length=64,
    )
    dimensions: Literal[2, 3] = Field(2, title="Dimensions", description="3: whole blocks of slices, for volumes")
    channels: Channels = Field((16, 16, 32, 64, 128), title="U-Net channels by level", min_length=2, max_length=8)
    dropout: float = Field(0.1, title="Feature dropout", ge=0, lt=1)
    planes: int = Field(16, title="Slices in a block (3-D)", ge=8, le=512, multiple_of=8)
    slice_ratio: float = Field(
        0.0, title="Slice spacing ÷ pixel spacing (3-D)", ge=0, le=1000, description="0 measures it in the study"
    )
    encoder_weights: str = Field("", title="Encoder weights", description="a local .safetensors file")

    @property
    def block(self) -> int:
        """Slices of a block, as batches are drawn; 0 for single slices."""
        return self.planes if self.dimensions == 3 else 0


class LoopSettings(Settings):
    """What both training loops share."""

    steps: int = Field(1000, title="Steps", ge=1, le=1_000_000)
    batch_size: int = Field(16, title="Batch size (slices)", ge=1, le=1024)
    learning_rate: float = Field(1e-3, title="Learning rate", gt=0, le=1)
    weight_decay: float = Field(1e-4, title="Weight decay", ge=0, le=1)
    warmup: float = Field(0.05, title="Warm-up (share of steps)", ge=0, le=0.5)
    seed: int = Field(0, title="Seed", ge=0, le=2**63 - 1)
    device: Device = Field("auto", title="Device", description="cuda:1 is a GPU by its number, mps Apple's")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", title="Precision", description="auto measures which is faster here and records it; fp16 on a GPU alone"
    )
    validate_every: int = Field(250, title="Validate every (steps)", ge=1, le=10**9)
    threads: int = Field(0, title="CPU threads", ge=0, le=256, description="0 leaves torch's own choice")


Captions = Literal["true", "shuffled", "empty"]
REGISTERED_TOWERS = ("efficientnet-lite0", "litemedsam")
"""Image encoders whose weights the registry names."""
_PRESETS: dict[str, dict[str, Any]] = {
    "locked": {
        "learning_rate": 1e-3,
        "steps": 3000,
        "encoders": {"image_encoder": "efficientnet-lite0", "text_encoder": "minilm", "image_size": 112},
    },
    "tiny": {"learning_rate": 1e-3, "encoders": {"image_encoder": "tiny", "text_encoder": "tiny", "image_size": 112}},
    "small": {
        "learning_rate": 1e-4,
        "encoders": {"image_encoder": "small", "text_encoder": "small", "image_size": 224},
    },
    "paper": {
        "learning_rate": 5e-5,
        "text_learning_rate_share": 1.0,
        "towers": "unfrozen",
        "uncertainty": "exp_paper",
        "positives": "diagonal",
        "mask_supervision": False,
        "side_prompts": 0.0,
        "encoders": {"image_encoder": "paper", "text_encoder": "paper", "image_size": 224},
        "generator": {"form": "frozen_linear", "pamr_iterations": 10},
    },
}
_PAPERS_TRAINING: dict[str, Any] = {
    "steps": 6000, "mode": "text_guided", "targets": "three", "merge": "logit_mean", "mask_supervision": False,
    "side_prompts": 0.0, "student": {"network": "unet"},
}  # fmt: skip


def _filled(preset: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What is given, and from the preset what is not; nested settings field by field."""
    whole = {**preset, **given}
    for name, value in preset.items():
        if isinstance(value, dict) and isinstance(whole[name], dict):
            whole[name] = {**value, **whole[name]}
    return whole


class PretrainSettings(LoopSettings):
    """``amvlm pretrain``: L_ita + 0.5·L_css + 0.1·L_pdt + 0.1·L_local + 0.1·L_icl, then the text mask generator."""

    preset: Literal["locked", "tiny", "small", "paper"] = Field(
        "locked", title="Preset", description="encoders, image size, learning rate …, where not given one by one; "
        "locked: frozen EfficientNet-Lite0 and MiniLM; tiny: from scratch; paper: every option as the paper has it",
    )  # fmt: skip
    towers: Literal["auto", "locked", "unfrozen"] = Field(
        "auto", title="Encoders",
        description="locked: frozen, their tokens computed once; auto: locked where both are pre-trained and the image "
        "encoder is of the registry",
    )  # fmt: skip
    steps: int = Field(600, title="Contrastive steps", ge=0, le=1_000_000)
    generator_steps: int = Field(1000, title="Generator steps", ge=0, le=1_000_000)
    generator_learning_rate: float = Field(1e-3, title="Generator's learning rate", gt=0, le=1)
    batch_size: int = Field(32, title="Batch size (images, over all processes)", ge=1, le=4096)
    text_learning_rate_share: float = Field(
        0.1, title="Text encoder's share of the learning rate", ge=0, le=1,
        description="at 1 the contrast makes it forget the words that no image tells apart yet, sides first",
    )  # fmt: skip
    validate_every: int = Field(
        0, title="Validate every (steps)", ge=0, description="0: once per epoch, at most 20 times"
    )
    checkpoint_every: int = Field(250, title="Checkpoint every (steps)", ge=1)
    patience: int = Field(5, title="Early stopping: validations without a better loss", ge=1)
    temperature: float = Field(0.07, title="Temperature τ", gt=0, le=1)
    positives: Literal["multi_positive", "diagonal"] = Field("multi_positive", title="Positives")
    uncertainty: Literal["exp", "exp_paper", "sigmoid"] = Field("exp", title="Form of g in L_css")
    css_weight: float = Field(0.5, title="Weight of L_css", ge=0, le=10, description="0 switches it off, L_pdt too")
    pdt_weight: float = Field(0.1, title="Weight of L_pdt", ge=0, le=10)
    local_weight: float = Field(0.1, title="Weight of L_local", ge=0, le=10)
    icl_weight: float = Field(0.1, title="Weight of L_icl", ge=0, le=10)
    mask_supervision: bool = Field(
        True, title="Text mask learns from accepted masks", description="off: frozen_linear from captions alone"
    )
    grounding_weight: float = Field(1.0, title="Weight of L_tg (frozen_linear)", ge=0, le=10)
    momentum: float = Field(0.995, title="EMA decay of the momentum encoders", ge=0, lt=1)
    captions: Captions = Field("true", title="Captions in training", description="shuffled and empty are the controls")
    side_prompts: float = Field(
        0.25, title="Share of one-sided prompts", ge=0, le=1,
        description="of findings on both sides: half of the caption with half of the mask",
    )  # fmt: skip
    both_sides: bool = Field(
        False, title="Every image holds both sides", description="captions written from masks may then name a side"
    )
    any_orientation: bool = Field(
        False, title="Images have no up (histology)", description="quarter turns; refused where a text names a place"
    )
    encoders: EncoderSettings = Field(default_factory=EncoderSettings, title="Encoders")
    generator: GeneratorSettings = Field(default_factory=GeneratorSettings, title="Text mask generator")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        """What is not given comes from the preset."""
        if not isinstance(given, dict) or given.get("preset", "locked") not in _PRESETS:
            return given
        return _filled(_PRESETS[given.get("preset", "locked")], given)

    @property
    def locked(self) -> bool:
        """Whether both encoders stay as they are."""
        encoders = self.encoders
        pretrained = encoders.image_encoder in REGISTERED_TOWERS and encoders.text_encoder != "tiny"
        return self.towers == "locked" or (self.towers == "auto" and pretrained)

    @model_validator(mode="after")
    def _masks_or_captions(self) -> PretrainSettings:
        if not self.mask_supervision and self.generator.form != "frozen_linear":
            raise ValueError("film_unet learns from accepted masks: choose --form frozen_linear")
        return self

    def for_the_record(self) -> PretrainSettings:
        """As a run and a model card keep them: no path of this machine."""
        return self.model_copy(update={"encoders": self.encoders.for_the_record()})


ONLY_BY_STEPS = (
    "preset", "mask_supervision",
    "targets", "confidence", "unlabelled_weight", "ramp_up", "cut_mix", "plain_prompts", "patience", "validate_every",
)  # fmt: skip
"""Settings of the paper's training that the plan takes the place of; the student's belong to them too."""


class TrainSettings(LoopSettings):
    """``amvlm train``: by minutes, a network that fits the study (METHOD §8); by steps, the paper's (METHOD §4).

    ``steps`` alone chooses between them. What only a training by steps reads is refused in one by minutes.
    """

    preset: Literal["", "paper"] = Field(
        "", title="Preset", description="paper: every option as the paper has it, where not given one by one"
    )
    minutes: float = Field(
        10.0, title="Minutes", ge=0, le=43_200, allow_inf_nan=False,
        description="the network is fitted to the study and to this time (see amvlm plan)",
    )  # fmt: skip
    steps: int = Field(
        0, title="Steps (0: by minutes)", ge=0, le=1_000_000,
        description="instead of minutes: the paper's training, at the base model's image size",
    )  # fmt: skip
    batch_size: int = Field(
        8, title="Batch size (slices)", ge=1, le=1024, description="as many labelled as unlabelled ones; in 3-D blocks"
    )
    mode: Literal["auto", "text_guided", "image_only", "two_stage", "labelled_only"] = Field(
        "auto",
        title="Targets on unlabelled cases",
        description="auto: text_guided where any case has a caption, else image_only; two_stage, by minutes: the text "
        "mask first, then a student on its soft masks of all captioned cases; labelled_only is a control",
    )
    mask_supervision: bool = Field(
        True, title="Text mask learns from accepted masks", description="off: it stays as it was pre-trained"
    )
    merge: Literal["gated", "logit_mean"] = Field("gated", title="Merge of text mask and teacher")
    captions: Captions = Field("true", title="Captions in training", description="shuffled and empty are the controls")
    ema_decay: float = Field(0.99, title="Teacher's EMA decay", ge=0, lt=1)
    ramp_up: float = Field(0.3, title="Ramp-up (share of steps)", gt=0, le=1)
    targets: Literal["merged", "three"] = Field(
        "merged",
        title="Targets from unlabelled cases",
        description="merged: the merged mask, hard; three: confident pseudo-label, text mask and merge, a third each",
    )
    confidence: float = Field(0.9, title="Pseudo-label confidence", ge=0.5, lt=1)
    unlabelled_weight: float = Field(1.0, title="Weight of the unlabelled cases", ge=0, le=10)
    cut_mix: float = Field(0.5, title="Share of unlabelled images mixed (CutMix)", ge=0, le=1)
    side_prompts: float = Field(
        0.25, title="Share of one-sided prompts", ge=0, le=1, description="as in pre-training; for the text mask only"
    )
    plain_prompts: bool = Field(
        False, title="Unlabelled cases sometimes under the plain prompt", description="instead of their caption"
    )
    patience: int = Field(8, title="Early stopping: validations without a better Dice", ge=1)
    checkpoint_every: int = Field(250, title="Checkpoint every (steps)", ge=1)
    student: StudentSettings = Field(default_factory=StudentSettings, title="Student")
    from_scratch: bool = Field(
        False, title="Begin with random weights",
        description="even where the model in use has networks of the same layers for the same structures",
    )  # fmt: skip
    text_mask: PlannedTextSettings = Field(default_factory=PlannedTextSettings, title="Text mask, by minutes")
    structures: tuple[str, ...] = Field((), title="Structures", description="empty: every one with a label")

    @property
    def by_minutes(self) -> bool:
        """Whether a plan fits the network to the study; otherwise this is the paper's training, of so many steps."""
        return self.steps == 0

    @model_validator(mode="before")
    @classmethod
    def _either(cls, given: Any) -> Any:
        """Steps take the place of the usual minutes."""
        if isinstance(given, dict) and given.get("preset") == "paper":
            given = _filled(_PAPERS_TRAINING, given)
        if not isinstance(given, dict) or "minutes" in given or given.get("steps") is None:
            return given
        if given["steps"] == 0:
            raise ValueError("give more than 0 --steps, or leave it out to train by minutes")
        return {**given, "minutes": 0.0}

    @model_validator(mode="after")
    def _text_needs_text(self) -> TrainSettings:
        if self.mode not in ("auto", "text_guided", "two_stage") and self.captions != "true":
            raise ValueError("shuffled or empty captions belong to mode text_guided or two_stage")
        return self

    @model_validator(mode="after")
    def _one_way(self) -> TrainSettings:
        if not self.by_minutes:
            if self.minutes:
                raise ValueError("give --minutes or --steps, not both")
            if self.mode == "two_stage":
                raise ValueError("--mode two_stage belongs to a training by minutes: leave --steps out")
            return self
        if not self.minutes:
            raise ValueError("give more than 0 --minutes, or --steps")
        if strangers := [flag for flag, changed in self._only_by_steps() if changed]:
            raise ValueError(f"--{strangers[0]} belongs to a training by steps: give --steps too, or leave it out")
        return self

    def _only_by_steps(self) -> Iterator[tuple[str, bool]]:
        """Flags that a training by minutes does not read, and whether each was changed."""
        for name in ONLY_BY_STEPS:
            yield name.replace("_", "-"), getattr(self, name) != type(self).model_fields[name].get_default()
        yield "mode", self.mode in ("text_guided", "image_only")
        for name, info in StudentSettings.model_fields.items():
            yield name.replace("_", "-"), getattr(self.student, name) != info.get_default()

    def for_the_record(self) -> TrainSettings:
        """As a run and a model card keep them: no path of this machine, encoder weights by their file's name."""
        bare = self.student.model_copy(update={"encoder_weights": PurePath(self.student.encoder_weights).name})
        return self.model_copy(update={"student": bare})
