"""A model on disk: config.json, model.safetensors, tokenizer.json, card.json. Never a pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor, nn

from amvlm.config import EncoderSettings, GeneratorSettings, StudentSettings
from amvlm.errors import UserError
from amvlm.imaging import write_bytes_atomically
from amvlm.models.encoders import EncoderRecipe
from amvlm.models.generator import TextMaskGenerator, build_generator
from amvlm.models.planned import PlannedStudent, read_plan
from amvlm.models.quality import ExpectedDice
from amvlm.models.student import Student, build_student
from amvlm.models.vlm import VisionLanguageModel
from amvlm.planning import Plan
from amvlm.text import mentions

RESEARCH_ONLY = "Research use only, not for diagnosis."


class KnownStructure(BaseModel):
    """A structure that the model learned, and how far its text mask is trusted."""

    model_config = ConfigDict(frozen=True)

    name: str
    aliases: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    prior: float = Field(0.05, description="foreground fraction of slices in training", gt=0, lt=1)
    text_weight: float = Field(0.5, description="α of the merged mask", ge=0, le=1)
    calibration: Literal["uncalibrated", "validation cases", "cross-fit"] = "uncalibrated"
    expected_dice: ExpectedDice | None = Field(None, description="what a merged mask's signs foretell")

    def matches(self, prompt: str) -> bool:
        """True for the structure's own wording, or a prompt that contains its name as words."""
        return mentions(prompt, (self.name, *self.aliases), self.prompts)


class ModelCard(BaseModel):
    """What a person must know before trusting a model."""

    name: str
    kind: Literal["pretrained", "trained"]
    notice: str = RESEARCH_ONLY
    licence: str = "The weights follow the licence of the data they were trained on."
    created: str = ""
    modality: str = ""
    laterality: Literal["patient", "image"] = Field(
        "patient", description="whose sides its texts named; studies and prompts name the patient's"
    )
    unswapped: tuple[str, ...] | None = Field(None, description="texts that a model of image sides reads as they are")
    planar: bool = False
    structures: tuple[KnownStructure, ...] = ()
    free_captions: bool = Field(False, description="trained on reports, so prompts may say more than a structure")
    store_id: str = ""
    data_fingerprint: str = ""
    revisions: tuple[int, ...] = ()
    labelled_cases: int = 0
    unlabelled_cases: int = 0
    validation: dict[str, dict[str, float]] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)

    def structure_of(self, prompt: str) -> KnownStructure | None:
        """The known structure that a prompt names; the longest name wins."""
        found = [structure for structure in self.structures if structure.matches(prompt)]
        return max(found, key=lambda structure: len(structure.name), default=None)

    def unswapped_texts(self) -> tuple[str, ...]:
        """What a model of image sides reads as it is: what the card says, else its structures' own wordings."""
        if self.unswapped is not None:
            return self.unswapped
        return tuple(text for s in self.structures for text in (s.name, *s.aliases, *s.prompts))

    def known_names(self) -> str:
        return ", ".join(structure.name for structure in self.structures) or "no structure yet"


class _Architecture(BaseModel):
    encoders: EncoderSettings
    image: dict[str, Any]
    image_type: str
    text: dict[str, Any]
    text_type: str
    generator: GeneratorSettings
    student: StudentSettings | None
    plan: dict[str, Any] | None = None
    prior: float
    format: int = 3


@dataclass
class AmvlmModel:
    """The networks that belong together; ``student`` is None after pre-training."""

    vlm: VisionLanguageModel
    generator: TextMaskGenerator
    generator_settings: GeneratorSettings
    student: Student | PlannedStudent | None
    student_settings: StudentSettings | None
    card: ModelCard
    prior: float = 0.05
    fingerprint: str = ""
    plan: Plan | None = None

    @property
    def image_size(self) -> int:
        """Side of the network's square input, px."""
        return self.vlm.settings.image_size

    def networks(self) -> dict[str, nn.Module]:
        parts = {"vlm": self.vlm, "generator": self.generator}
        return parts if self.student is None else {**parts, "student": self.student}

    def to(self, device: torch.device | str) -> AmvlmModel:
        for network in self.networks().values():
            network.to(device)
        return self

    def eval(self) -> AmvlmModel:
        for network in self.networks().values():
            network.eval()
        return self

    def save(self, folder: Path) -> None:
        """Write the folder under another name first and rename it, so that a model is whole or not there."""
        tensors: dict[str, Tensor] = {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part, network in self.networks().items()
            for name, tensor in network.state_dict().items()
        }
        weights = save(tensors)
        self.fingerprint = hashlib.sha256(weights).hexdigest()[:16]
        architecture = _Architecture(
            encoders=self.vlm.settings, image=self.vlm.image_recipe.config, image_type=self.vlm.image_recipe.model_type,
            text=self.vlm.text_recipe.config, text_type=self.vlm.text_recipe.model_type,
            generator=self.generator_settings, student=self.student_settings, prior=self.prior,
            plan=None if self.plan is None else self.plan.model_dump(mode="json"),
        )  # fmt: skip
        beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
        try:
            beside.mkdir(parents=True)
            write_bytes_atomically(beside / "model.safetensors", weights)
            write_bytes_atomically(beside / "config.json", architecture.model_dump_json(indent=1).encode())
            write_bytes_atomically(beside / "tokenizer.json", self.vlm.tokenizer.to_str().encode())
            card = self.card.model_copy(update={"name": folder.name})
            write_bytes_atomically(beside / "card.json", (card.model_dump_json(indent=1) + "\n").encode())
            if folder.exists():
                shutil.rmtree(folder)
            beside.rename(folder)
        except OSError as error:
            raise UserError(
                f"the model could not be saved ({error.strerror})", file=folder, remedy="Check free disk space."
            ) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path) -> AmvlmModel:
        """Read a model folder, in eval mode on the CPU."""
        folder = Path(folder)
        try:
            architecture = _Architecture.model_validate_json((folder / "config.json").read_text("utf-8"))
            card = ModelCard.model_validate_json((folder / "card.json").read_text("utf-8"))
            tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text("utf-8"))
            weights = load_file(folder / "model.safetensors")
            fingerprint = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
        except FileNotFoundError as error:
            raise UserError("there is no model here", file=folder, remedy="Choose a folder that amvlm made.") from error
        except (ValidationError, safetensors.SafetensorError, ValueError, OSError) as error:
            raise UserError("the model is damaged", file=folder, remedy="Copy it again, or train a new one.") from error
        vlm = VisionLanguageModel(
            architecture.encoders,
            EncoderRecipe(architecture.image_type, architecture.image),
            EncoderRecipe(architecture.text_type, architecture.text),
            tokenizer,
        )
        if card.laterality == "image":
            vlm.read_image_sides(card.unswapped_texts())
        generator = build_generator(architecture.generator, vlm, architecture.prior)
        plan = None if architecture.plan is None else read_plan(architecture.plan, folder)
        student: Student | PlannedStudent | None = None if plan is None else PlannedStudent(plan)
        if architecture.student:
            student = build_student(architecture.student, len(card.structures))
        model = cls(
            vlm, generator, architecture.generator, student, architecture.student, card, architecture.prior,
            fingerprint, plan,
        )  # fmt: skip
        try:
            for part, network in model.networks().items():
                own = {n.removeprefix(f"{part}."): t for n, t in weights.items() if n.startswith(f"{part}.")}
                network.load_state_dict(own)
        except RuntimeError as error:
            raise UserError(
                "the weights do not fit the model's description",
                file=folder,
                remedy="Train it again with this release.",
            ) from error
        return model.eval()


def read_card(folder: Path) -> ModelCard:
    """Only the card: what a list of models needs."""
    try:
        return ModelCard.model_validate(json.loads((folder / "card.json").read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise UserError("there is no readable model card", file=folder, remedy="Choose another model.") from error
