"""Every setting, once: title, unit and range. The form, the flags and the run's JSON are built from here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderSettings(Settings):
    """Which encoders the vision-language model is built from."""

    image_encoder: str = Field("tiny", title="Image encoder", description="'tiny', a hub id or a local folder")
    text_encoder: str = Field("tiny", title="Text encoder", description="'tiny', a hub id or a local folder")
    image_size: int = Field(112, title="Image size (px)", ge=16, le=1024, multiple_of=8)
    embedding_size: int = Field(128, title="Embedding size", ge=8, le=1024)


class GeneratorSettings(Settings):
    """The text mask generator (METHOD §3)."""

    form: Literal["film_unet", "frozen_linear"] = Field("film_unet", title="Text mask generator")
    channels: tuple[int, ...] = Field((16, 32, 64, 128), title="U-Net channels by level")
    features: int = Field(16, title="Full-resolution features", ge=4, le=256)
    pamr_iterations: int = Field(0, title="PAMR iterations", ge=0, le=50)


class StudentSettings(Settings):
    """The segmentation network that needs no text."""

    channels: tuple[int, ...] = Field((16, 32, 64, 128), title="U-Net channels by level")
    dropout: float = Field(0.1, title="Feature dropout", ge=0, lt=1)


class LoopSettings(Settings):
    """What both training loops share."""

    steps: int = Field(1000, title="Steps", ge=1, le=1_000_000)
    batch_size: int = Field(16, title="Batch size (slices)", ge=1, le=1024)
    learning_rate: float = Field(1e-3, title="Learning rate", gt=0, le=1)
    weight_decay: float = Field(1e-4, title="Weight decay", ge=0, le=1)
    warmup: float = Field(0.05, title="Warm-up (share of steps)", ge=0, le=0.5)
    seed: int = Field(0, title="Seed", ge=0)
    device: Literal["auto", "cpu"] = Field("auto", title="Device")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", title="Precision", description="auto measures which is faster here and records it"
    )
    validate_every: int = Field(250, title="Validate every (steps)", ge=1)
    threads: int = Field(0, title="CPU threads", ge=0, le=256, description="0 leaves torch's own choice")


class PretrainSettings(LoopSettings):
    """``amvlm pretrain``: align images with captions, then teach the text mask generator."""

    steps: int = Field(600, title="Contrastive steps", ge=0, le=1_000_000)
    generator_steps: int = Field(1000, title="Generator steps", ge=0, le=1_000_000)
    temperature: float = Field(0.07, title="Temperature τ", gt=0, le=1)
    positives: Literal["multi_positive", "diagonal"] = Field("multi_positive", title="Positives")
    encoders: EncoderSettings = Field(default_factory=EncoderSettings, title="Encoders")
    generator: GeneratorSettings = Field(default_factory=GeneratorSettings, title="Text mask generator")


class TrainSettings(LoopSettings):
    """``amvlm train``: the text-guided teacher-student network (METHOD §4)."""

    mode: Literal["text_guided", "image_only", "labelled_only"] = Field(
        "text_guided",
        title="Targets on unlabelled cases",
        description="image_only and labelled_only are the controls",
    )
    merge: Literal["gated", "logit_mean"] = Field("gated", title="Merge of text mask and teacher")
    captions: Literal["true", "shuffled", "empty"] = Field(
        "true", title="Captions in training", description="shuffled and empty are the controls"
    )
    ema_decay: float = Field(0.99, title="Teacher's EMA decay", ge=0, lt=1)
    ramp_up: float = Field(0.3, title="Ramp-up (share of steps)", gt=0, le=1)
    confidence: float = Field(0.9, title="Pseudo-label confidence", ge=0.5, lt=1)
    checkpoint_every: int = Field(250, title="Checkpoint every (steps)", ge=1)
    student: StudentSettings = Field(default_factory=StudentSettings, title="Student")
    structures: tuple[str, ...] = Field((), title="Structures", description="empty: every one with a label")

    @model_validator(mode="after")
    def _text_needs_text(self) -> TrainSettings:
        if self.mode != "text_guided" and self.captions != "true":
            raise ValueError("shuffled or empty captions belong to mode text_guided")
        return self
