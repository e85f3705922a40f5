"""A model on disk: config.json, model.safetensors, tokenizer.json, card.json. Never a pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor, nn

from amvlm.config import GeneratorSettings, PlannedTextSettings, StudentSettings
from amvlm.errors import UserError
from amvlm.models.card import _LONGEST_CARD, RESEARCH_ONLY, KnownStructure, ModelCard, file_of, read_card
from amvlm.models.description import (
    LONGEST_CONFIG,
    LONGEST_TOKENIZER,
    Architecture,
    Header,
    all_finite,
    check_ids,
    fits,
    header_of,
    plain_recipe,
    safe_tokenizer,
)
from amvlm.models.encoders import EncoderRecipe, text_tensors
from amvlm.models.generator import TextMaskGenerator, build_generator
from amvlm.models.planned import PlannedStudent, read_plan
from amvlm.models.planned_text import PatchFeatures, PlannedFilmUNet, planned_film_unet, projected_patches
from amvlm.models.registered import PREFIX, folder_of, named_text_encoder, text_header
from amvlm.models.student import Student, build_student
from amvlm.models.vlm import VisionLanguageModel
from amvlm.outside import read_small
from amvlm.paths import check_name, check_regular
from amvlm.planning import Plan
from amvlm.store.folders import save_model_folder, standing
from amvlm.weights import REGISTRY, Weights, is_there

__all__ = ["RESEARCH_ONLY", "AmvlmModel", "KnownStructure", "ModelCard", "missing_weights", "read_card"]
_ATTEMPTS, _MOST_VOXELS = 3, 1 << 22


@dataclass
class AmvlmModel:
    """The networks that belong together; ``student`` is None after pre-training.

    ``generator`` works on the encoder's square, or in a model made by minutes on the plan's grid.
    """

    vlm: VisionLanguageModel
    generator: TextMaskGenerator | PlannedFilmUNet
    generator_settings: GeneratorSettings | PlannedTextSettings
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
        parts: dict[str, nn.Module] = {"vlm": self.vlm, "generator": self.generator}
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
        """Write a model's folder whole, or not at all; it replaces a model of that name, and nothing else.

        A text encoder that is, bit for bit, one of the registry's is named by its hash and left out.

        Raises
        ------
        UserError
            If the name is no plain name, something other than a model has it, or the disk does not take it.
        """
        check_name(folder.name, "model name")
        named = named_text_encoder(self.vlm)
        tensors: dict[str, Tensor] = {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part, network in self.networks().items()
            for name, tensor in network.state_dict().items()
        }
        if named is not None:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
        weights = save(tensors)
        known = hashlib.sha256(weights).hexdigest()
        vlm = self.vlm
        architecture = Architecture(
            encoders=vlm.settings.for_the_record(), weights_sha256=known, text_weights=named, prior=self.prior,
            image=plain_recipe(vlm.image_recipe.config), image_type=vlm.image_recipe.model_type,
            text=plain_recipe(vlm.text_recipe.config), text_type=vlm.text_recipe.model_type,
            generator=self.generator_settings, student=self.student_settings,
            plan=None if self.plan is None else self.plan.model_dump(mode="json"),
        )  # fmt: skip
        card = self.card.model_copy(update={"name": folder.name})
        files = {
            "model.safetensors": weights,
            "config.json": architecture.model_dump_json(indent=1).encode(),
            "tokenizer.json": vlm.tokenizer.to_str().encode(),
            "card.json": (card.model_dump_json(indent=1) + "\n").encode(),
        }
        save_model_folder(folder, files)
        self.fingerprint = known[:16]

    @classmethod
    def load(cls, folder: str | Path) -> AmvlmModel:
        """Read a model folder, in eval mode on the CPU.

        The folder may be a stranger's: sizes are bounded and compared before anything is allocated, weights are
        finite, and nothing in it is run.

        Raises
        ------
        MissingWeightsError
            If it names a text encoder that is not on this machine.
        UserError
        """
        folder = Path(folder)
        for attempt in range(_ATTEMPTS):
            stands = standing(folder)
            before = _identity(stands)
            try:
                return cls._load(stands, folder)
            except UserError:
                if attempt + 1 == _ATTEMPTS or _identity(standing(folder)) == before:
                    raise  # otherwise another process has just saved a model of this name
        raise AssertionError("unreachable")

    @classmethod
    def _load(cls, stands: Path, folder: Path) -> AmvlmModel:
        weights = file_of(stands, "model.safetensors")
        with _sentences(folder):
            architecture = Architecture.model_validate_json(
                read_small(file_of(stands, "config.json"), LONGEST_CONFIG)
            )
            architecture.check_patches()
            card = ModelCard.model_validate_json(read_small(file_of(stands, "card.json"), _LONGEST_CARD))
            tokenizer = safe_tokenizer(read_small(file_of(stands, "tokenizer.json"), LONGEST_TOKENIZER).decode())
            _check_plain_file(weights)
            header = header_of(weights)
        named = architecture.text_weights
        elsewhere = None if named is None else folder_of(named, folder)
        if elsewhere is not None:
            header = _with_text(header, text_header(elsewhere), folder)
        plan = None if architecture.plan is None else read_plan(architecture.plan, folder)
        if plan is not None and plan.structures != tuple(structure.name for structure in card.structures):
            raise UserError("the model's plan and card name other structures", file=folder, remedy="Copy it again.")
        _check_fit(architecture, card, tokenizer, header, folder)
        model = _built(architecture, card, tokenizer)
        with _sentences(folder):
            tensors = load_file(weights)
            if elsewhere is not None:
                tensors |= {PREFIX + name: tensor for name, tensor in text_tensors(elsewhere).items()}
            model.fingerprint = _sha256_of(weights, architecture.weights_sha256)[:16]
        if not all_finite(tensors):
            raise UserError("the model's weights are not numbers", file=folder, remedy="Choose another model.")
        for part, network in model.networks().items():
            own = {n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(f"{part}.")}
            network.load_state_dict(own)
        _check_use(model.eval(), folder)
        return model


def _with_text(header: Header, text: Header, folder: Path) -> Header:
    """The header of a model that names its text encoder, as if it held it."""
    if header.keys() & text.keys():
        raise UserError("the model both names and holds a text encoder", file=folder, remedy="Copy it again.")
    return header | text


def missing_weights(folder: Path) -> Weights | None:
    """The registry's weights that a model needs and that are not on this machine: to be asked for before it is loaded.

    A model that cannot be read needs none; loading it says why.
    """
    try:
        content = read_small(file_of(standing(folder), "config.json"), LONGEST_CONFIG)
        named = Architecture.model_validate_json(content).text_weights
    except (OSError, ValidationError, UserError):
        return None
    if named is None or named.name not in REGISTRY or is_there(named.name):
        return None
    return REGISTRY[named.name]


def _built(architecture: Architecture, card: ModelCard, tokenizer: Tokenizer) -> AmvlmModel:
    """The networks that a description asks for, with random weights."""
    recipes = (
        EncoderRecipe(architecture.image_type, architecture.image),
        EncoderRecipe(architecture.text_type, architecture.text),
    )
    vlm = VisionLanguageModel(architecture.encoders, *recipes, tokenizer)
    if card.laterality == "image":
        vlm.read_image_sides(card.unswapped_texts())
    plan = None if architecture.plan is None else Plan.model_validate(architecture.plan)
    generator: TextMaskGenerator | PlannedFilmUNet
    if isinstance(architecture.generator, GeneratorSettings):
        generator = build_generator(architecture.generator, vlm, architecture.prior)
    elif plan is None:
        raise ValueError("a text mask on a plan's grid needs the plan")
    else:
        generator = planned_film_unet(architecture.generator, plan, vlm, architecture.prior)
    student: Student | PlannedStudent | None = None if plan is None else PlannedStudent(plan)
    if plan is None and architecture.student:
        student = build_student(architecture.student, len(card.structures))
    settings = architecture.student if plan is None else None
    return AmvlmModel(
        vlm, generator, architecture.generator, student, settings, card, architecture.prior, plan=plan
    )


@contextmanager
def _sentences(folder: Path) -> Iterator[None]:
    """What is wrong with a model's files, in words."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError("there is no model here", file=folder, remedy="Choose a folder that amvlm made.") from error
    except UserError as error:
        raise UserError(f"the model is damaged: {error.what}", file=folder, remedy=error.remedy) from error
    except (ValidationError, safetensors.SafetensorError, ValueError, OSError) as error:
        raise UserError("the model is damaged", file=folder, remedy="Copy it again, or train a new one.") from error


def _check_fit(
    architecture: Architecture, card: ModelCard, tokenizer: Tokenizer, header: Header, folder: Path
) -> None:
    """Compare what the description asks for with what the file holds, without taking memory for either."""
    if architecture.student is not None and not card.structures:
        raise UserError("its card names none of the structures it predicts", file=folder, remedy="Copy it again.")
    try:
        with torch.device("meta"):
            meta = _built(architecture, card, tokenizer)
        fitting = fits(header, meta.networks())
    except UserError:
        raise
    except Exception as error:  # a stranger's settings meet the libraries of encoders and networks
        raise UserError("the model's description makes no network", file=folder, remedy="Copy it again.") from error
    if not fitting:
        raise UserError(
            "the weights do not fit the model's description", file=folder, remedy="Train it again with this release."
        )
    encoder: Any = meta.vlm.text_encoder
    check_ids(tokenizer, int(encoder.config.vocab_size))


@torch.no_grad()
def _check_use(model: AmvlmModel, folder: Path) -> None:
    """Run every network once on an empty image: networks that cannot be run, or answer NaN, are refused."""
    size = model.image_size
    image = torch.zeros(1, 3, size, size)
    try:
        answers = [model.vlm.embed_image(image), _text_mask(model, image)]
        if isinstance(model.student, PlannedStudent):
            answers.append(model.student(torch.zeros(model.student.smallest_input)))
        elif model.student is not None and model.student.planes * size * size <= _MOST_VOXELS:
            answers.append(model.student(torch.zeros(1, model.student.planes, size, size)))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise UserError("the model's networks cannot be run", file=folder, remedy="Choose another model.") from error
    if not all(bool(answer.isfinite().all()) for answer in answers):
        raise UserError("the model's answers are not numbers", file=folder, remedy="Choose another model.")


def _text_mask(model: AmvlmModel, image: Tensor) -> Tensor:
    """Logits of a prompt on an empty image."""
    text = model.vlm.embed_prompt(["a"])
    if not isinstance(model.generator, PlannedFilmUNet):
        return model.generator(image, text[None])  # type: ignore[no-any-return]
    patches = PatchFeatures(projected_patches(model.vlm, image), torch.eye(2, 3)[None])
    small = torch.zeros(1, model.generator.plan.inputs, 32, 32)
    return model.generator(small, patches, text)  # type: ignore[no-any-return]


def _check_plain_file(path: Path) -> None:
    if path.is_symlink() or check_regular(path).is_dir():
        raise OSError("it is not a file")


def _sha256_of(weights: Path, wanted: str) -> str:
    with weights.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if wanted and found != wanted:
        raise ValueError("the weights were changed")
    return found


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        known = folder.stat()
    except OSError:
        return None
    return known.st_ino, known.st_mtime_ns
