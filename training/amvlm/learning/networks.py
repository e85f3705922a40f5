"""The networks of one run: student, text mask generator, and the averages that teach."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from amvlm.config import GeneratorSettings, TrainSettings
from amvlm.learning.batches import slabs_of
from amvlm.learning.checkpoint import notes_damaged
from amvlm.learning.context import Context
from amvlm.learning.ema import make_teacher
from amvlm.learning.study import LabelledCase, Study, priors
from amvlm.learning.texts import TextTable, shared_words
from amvlm.losses import merged_logits
from amvlm.models import (
    AmvlmModel,
    KnownStructure,
    ModelCard,
    TextMaskGenerator,
    VisionLanguageModel,
    build_generator,
    build_student,
)
from amvlm.models.quality import ExpectedDice
from amvlm.models.student import Student, load_encoder_weights
from amvlm.text import names_a_side

Calibration = Literal["uncalibrated", "validation cases", "cross-fit"]
Weights = list[Annotated[float, Field(ge=0, le=1)]]


class _Notes(BaseModel):
    """What a checkpoint says beside the weights."""

    model_config = ConfigDict(extra="forbid")

    text_weights: Weights
    calibration: Calibration
    best_score: float
    best_dices: dict[str, dict[str, float]]
    best_text_weights: Weights
    waited: int = Field(ge=0)
    batch_parts: int = Field(ge=1, le=1024)
    expected_dice: list[ExpectedDice | None]
    best_expected_dice: list[ExpectedDice | None]


class Learned(NamedTuple):
    """What a run found of one structure: its share of the voxels, α, and what foretells its Dice."""

    prior: float
    text_weight: float
    expected_dice: ExpectedDice | None


def trained_card(
    vlm: VisionLanguageModel,
    study: Study,
    settings: TrainSettings,
    name: str,
    learned: Sequence[Learned],
    calibration: Calibration,
    validation: dict[str, dict[str, float]],
    labelled: int,
) -> ModelCard:
    """The card of a model that was trained on a study."""
    words, captions = shared_words(study.captions)
    return ModelCard(
        name=name,
        kind="trained",
        modality=study.modality,
        laterality=vlm.card_laterality,
        unswapped=vlm.unswapped,
        planar=study.planar,
        structures=tuple(
            KnownStructure(
                name=s.name, aliases=s.aliases, prompts=s.prompts or (s.name,), prior=own.prior,
                text_weight=own.text_weight, calibration=calibration, expected_dice=own.expected_dice,
            )
            for s, own in zip(study.structures, learned, strict=True)
        ),
        free_captions=bool(study.captions),
        words=words,
        captions=captions,
        store_id=study.store.store_id,
        data_fingerprint=study.fingerprint,
        revisions=tuple(revision.revision_id for revision in study.snapshot.revisions),
        labelled_cases=labelled,
        unlabelled_cases=len(study.unlabelled),
        validation=validation,
        settings=settings.for_the_record().model_dump(mode="json"),
    )  # fmt: skip


@dataclass
class Networks:
    """Student and generator learn; their averages (``teacher``, ``generator_teacher``) make targets and are kept.

    ``embeddings`` is the frozen text encoder's table of all texts, (T, D); ``text_weights`` holds α per structure;
    ``mirror`` is False where an output stands for one side of the body.
    """

    vlm: VisionLanguageModel
    generator: TextMaskGenerator
    generator_teacher: nn.Module
    student: Student
    teacher: nn.Module
    embeddings: Tensor
    foreground: Tensor
    text_weights: list[float]
    generator_settings: GeneratorSettings = field(default_factory=GeneratorSettings)
    mirror: bool = True
    calibration: Calibration = "uncalibrated"
    best_score: float = -1.0
    best_dices: dict[str, dict[str, float]] = field(default_factory=dict)
    best_text_weights: list[float] = field(default_factory=list)
    expected_dice: list[ExpectedDice | None] = field(default_factory=list)
    best_expected_dice: list[ExpectedDice | None] = field(default_factory=list)
    waited: int = 0
    batch_parts: int = 1

    def __post_init__(self) -> None:
        self.best_teacher = make_teacher(self.teacher)
        self.best_generator = make_teacher(self.generator_teacher)

    @classmethod
    def fresh(
        cls,
        base: AmvlmModel,
        settings: TrainSettings,
        labelled: list[LabelledCase],
        context: Context,
        table: TextTable,
        resume: bool = False,
    ) -> Networks:
        """Start a student and a generator on a frozen vision-language model.

        A generator that never saw a mask (``frozen_linear``, from captions alone) gives way to the default form.
        """
        vlm = copy.deepcopy(base.vlm).to(context.device).eval().requires_grad_(False)
        foreground = priors(labelled, len(context.study.names))
        learned = base.card.kind == "pretrained" and base.card.labelled_cases > 0
        form = GeneratorSettings()
        if base.card.labelled_cases > 0 and isinstance(base.generator_settings, GeneratorSettings):
            form = base.generator_settings
        generator = build_generator(form, vlm, sum(foreground) / len(foreground))
        if learned:
            generator.load_state_dict(base.generator.state_dict())
        generator.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        embeddings = table.embedded(vlm)
        generator.fit_text(embeddings)
        student = build_student(settings.student, len(foreground), sum(foreground) / len(foreground))
        if settings.student.encoder_weights and not resume:  # a resumed run has them in its checkpoint
            load_encoder_weights(student, settings.student.encoder_weights)
        student.to(context.device)
        if settings.student.dimensions == 2:
            student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(
            vlm, generator, make_teacher(generator), student, make_teacher(student), embeddings,
            torch.tensor(foreground, device=context.device), [0.5] * len(foreground),
            generator_settings=form, mirror=not any(names_a_side(name) for name in context.study.names),
        )  # fmt: skip

    def prepare(self, context: Context, settings: TrainSettings) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        """Student and generator as accelerate runs them, with one optimiser over both."""
        learning = [p for network in (self.student, self.generator) for p in network.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            learning, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        if context.processes > 1 and context.device.type == "cuda":  # batch statistics over all GPUs
            self.student = nn.SyncBatchNorm.convert_sync_batchnorm(self.student)  # type: ignore[no-untyped-call]
            self.generator = nn.SyncBatchNorm.convert_sync_batchnorm(self.generator)  # type: ignore[no-untyped-call]
        student, generator, prepared = context.accelerator.prepare(self.student, self.generator, optimiser)
        return student, generator, prepared

    @torch.no_grad()
    def targets(self, context: Context, weak: Tensor, text: Tensor | None) -> list[Tensor]:
        """Probabilities of teacher, text mask and merged mask on an unmixed weak view, (B, S[, planes], H, W) each.

        Logits are merged; each target takes its one sigmoid here. Of a 3-D student's blocks the text masks are made
        slice by slice and stacked. Without text (B, S, D) only the teacher's.
        """
        with context.accelerator.autocast():
            teacher_logits = self.teacher(weak).float()
            if text is None:
                return [teacher_logits.sigmoid()]
            if teacher_logits.ndim == 5:
                planes = weak.shape[1]
                flat = self.generator_teacher(slabs_of(weak), text.repeat_interleave(planes, 0)).float()
                text_mask_logits = flat.unflatten(0, (len(weak), planes)).movedim(1, 2)
            else:
                text_mask_logits = self.generator_teacher(weak, text).float()
        merged = merged_logits(teacher_logits, text_mask_logits, torch.tensor(self.text_weights))
        return [teacher_logits.sigmoid(), text_mask_logits.sigmoid(), merged.sigmoid()]

    def parts(self) -> dict[str, nn.Module]:
        """What a checkpoint holds."""
        return {
            "generator": self.generator,
            "generator_teacher": self.generator_teacher,
            "student": self.student,
            "teacher": self.teacher,
            "best_generator": self.best_generator,
            "best_teacher": self.best_teacher,
        }

    def notes(self) -> dict[str, Any]:
        """What a checkpoint says beside the weights."""
        return _Notes(**{name: getattr(self, name) for name in _Notes.model_fields}).model_dump()

    def restore(self, notes: dict[str, Any], run_folder: Path) -> None:
        """Take back what :meth:`notes` gave.

        Raises
        ------
        UserError
            If the notes, which may be a stranger's, are not valid.
        """
        try:
            known = _Notes.model_validate(notes)
        except ValidationError as error:
            raise notes_damaged(run_folder) from error
        if len(known.text_weights) != len(self.text_weights):
            raise notes_damaged(run_folder)
        for name in _Notes.model_fields:
            setattr(self, name, getattr(known, name))

    def keep_if_best(self, dices: dict[str, dict[str, float]]) -> None:
        """Remember the averages whose student and text mask score best on the validation cases."""
        scores = [dice for kind in ("student", "text_mask") for dice in dices[kind].values()]
        score = sum(scores) / len(scores) if scores else -1.0
        self.waited += 1
        if score > self.best_score:
            self.best_score = score
            self.best_dices, self.best_text_weights = dices, list(self.text_weights)
            self.waited, self.best_expected_dice = 0, list(self.expected_dice)
            self.best_teacher.load_state_dict(self.teacher.state_dict())
            self.best_generator.load_state_dict(self.generator_teacher.state_dict())

    def as_model(
        self,
        base: AmvlmModel,
        study: Study,
        settings: TrainSettings,
        name: str,
        before: dict[str, dict[str, float]],
        labelled: int,
    ) -> AmvlmModel:
        """The model to keep: the best averages, or the last ones where nothing could be validated."""
        validated = bool(self.best_dices)
        weights = self.best_text_weights if validated else self.text_weights
        expected = (self.best_expected_dice if validated else self.expected_dice) or [None] * len(weights)
        validation = {f"after {kind}": dices for kind, dices in self.best_dices.items()}
        validation |= {f"before {kind}": dices for kind, dices in before.items()}
        learned = [Learned(*parts) for parts in zip(self.foreground.tolist(), weights, expected, strict=True)]
        card = trained_card(self.vlm, study, settings, name, learned, self.calibration, validation, labelled)
        generator = self.best_generator if validated else self.generator_teacher
        student = self.best_teacher if validated else self.teacher
        self.generator.load_state_dict(generator.state_dict())
        self.student.load_state_dict(student.state_dict())
        return AmvlmModel(
            self.vlm, self.generator, self.generator_settings, self.student, settings.for_the_record().student, card,
            sum(self.foreground.tolist()) / len(self.foreground),
        )  # fmt: skip
