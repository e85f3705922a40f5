"""The card of a model: what a person must know before trusting it. Every field is bounded: it may be a stranger's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amvlm.errors import UserError
from amvlm.models.quality import ExpectedDice
from amvlm.outside import read_small
from amvlm.paths import Slug
from amvlm.store.folders import standing
from amvlm.text import checked_prompt, mentions, names_a_side
from amvlm.text.read import ReadPrompt, read_prompt

RESEARCH_ONLY = "Research use only, not for diagnosis."
_LONGEST_CARD = 16 << 20
_OWN_PACKAGE = Path(__file__).resolve().parents[1]

Word = Annotated[str, Field(max_length=200)]
Words = Annotated[str, Field(max_length=5_000)]
Score = Annotated[float, Field(allow_inf_nan=True)]


class KnownStructure(BaseModel):
    """A structure that the model learned, and how far its text mask is trusted."""

    model_config = ConfigDict(frozen=True)

    name: Word
    aliases: Annotated[tuple[Word, ...], Field(max_length=200)] = ()
    prompts: Annotated[tuple[Words, ...], Field(max_length=1_000)] = ()
    prior: float = Field(0.05, description="foreground fraction of slices in training", gt=0, lt=1)
    text_weight: float = Field(0.5, description="α of the merged mask", ge=0, le=1)
    calibration: Literal["uncalibrated", "validation cases", "cross-fit"] = "uncalibrated"
    expected_dice: ExpectedDice | None = Field(None, description="what a merged mask's signs foretell")

    def matches(self, prompt: str) -> bool:
        """True for the structure's own wording, or a prompt that contains its name as words."""
        return mentions(prompt, (self.name, *self.aliases), self.prompts)


class ModelCard(BaseModel):
    """What a person must know before trusting a model."""

    name: Slug
    kind: Literal["pretrained", "trained"]
    notice: Words = RESEARCH_ONLY
    licence: Words = "The weights follow the licence of the data they were trained on."
    created: Word = ""
    modality: Word = ""
    laterality: Literal["patient", "image"] = Field(
        "patient", description="whose sides its texts named; studies and prompts name the patient's"
    )
    unswapped: Annotated[tuple[Words, ...], Field(max_length=10_000)] | None = Field(
        None, description="texts that a model of image sides reads as they are"
    )
    planar: bool = False
    structures: Annotated[tuple[KnownStructure, ...], Field(max_length=1_000)] = ()
    free_captions: bool = Field(False, description="trained on reports, so prompts may say more than a structure")
    words: Annotated[tuple[Word, ...], Field(max_length=20_000)] = Field(
        (), description="of the reports that it was trained on: medical words that stand in several of them"
    )
    captions: Annotated[tuple[Words, ...], Field(max_length=10_000)] = Field(
        (), description="reports that several cases share, and that hold such words alone"
    )
    store_id: Word = ""
    data_fingerprint: Word = ""
    revisions: tuple[int, ...] = ()
    labelled_cases: int = Field(0, ge=0)
    unlabelled_cases: int = Field(0, ge=0)
    validation: Annotated[dict[Word, dict[Word, Score]], Field(max_length=100)] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)

    def read(self, prompt: str) -> ReadPrompt:
        """What a person typed, as this model understands it: a caption to embed, or a refusal.

        A model of reports that keeps none of their words, as those made before did, takes every text as it is.

        Raises
        ------
        UserError
            If such a model is given nothing, or too much.
        """
        if self.words or (self.structures and not self.free_captions):
            reading = read_prompt(prompt, self.structures, free_words=self.words, captions=self.captions)
            blind = not self.words and reading.structure is not None and not names_a_side(reading.structure)
            if reading.side in ("left", "right") and blind:
                note = f"This model does not tell left from right: check that this is the {reading.side} one."
                reading = dataclasses.replace(reading, note=" ".join(filter(None, [reading.note, note])))
            return reading
        typed = checked_prompt(prompt)
        own = self.structure_of(typed)
        return ReadPrompt(typed, None if own is None else own.name, caption=typed)

    def understood(self, prompt: str) -> ReadPrompt:
        """What a person typed, where a mask must come of it.

        Raises
        ------
        UserError
            If it cannot be read without a guess.
        """
        reading = self.read(prompt)
        if reading.refusal:
            remedy = "Type one of these, or train a model on the structure."
            raise UserError(reading.refusal.rstrip("."), remedy=remedy)
        return reading

    def structure_of(self, prompt: str) -> KnownStructure | None:
        """The known structure that a caption of the study names; the longest name wins."""
        found = [structure for structure in self.structures if structure.matches(prompt)]
        return max(found, key=lambda structure: len(structure.name), default=None)

    def unswapped_texts(self) -> tuple[str, ...]:
        """What a model of image sides reads as it is: what the card says, else its structures' own wordings."""
        if self.unswapped is not None:
            return self.unswapped
        return tuple(text for s in self.structures for text in (s.name, *s.aliases, *s.prompts))

    def known_names(self) -> str:
        return ", ".join(structure.name for structure in self.structures) or "no structure yet"


def file_of(folder: Path, name: str) -> Path:
    """A file of a model's folder. Only within this package links are followed: some installers fill it with them."""
    path = folder / name
    return path.resolve() if folder.resolve().is_relative_to(_OWN_PACKAGE) else path


def read_card(folder: Path) -> ModelCard:
    """Only the card: what a list of models needs.

    Raises
    ------
    UserError
    """
    try:
        return ModelCard.model_validate_json(read_small(file_of(standing(folder), "card.json"), _LONGEST_CARD))
    except (OSError, ValidationError) as error:
        raise UserError("there is no readable model card", file=folder, remedy="Choose another model.") from error
