"""Captions and prompts: words in, words out; no tensors here."""

from amvlm.text.captions import (
    LOW_SIDE,
    MAX_PROMPT_CHARACTERS,
    Side,
    checked_prompt,
    class_derangement,
    medical_words,
    mentions,
    names_a_side,
    normalise_caption,
    swap_sides,
    to_patient_sides,
)
from amvlm.text.views import (
    caption_view,
    clauses_of,
    names_a_place,
    one_level,
    one_sided,
    view_key,
    without_count,
    written_caption,
)

__all__ = [
    "LOW_SIDE",
    "MAX_PROMPT_CHARACTERS",
    "Side",
    "caption_view",
    "checked_prompt",
    "class_derangement",
    "clauses_of",
    "medical_words",
    "mentions",
    "names_a_place",
    "names_a_side",
    "normalise_caption",
    "one_level",
    "one_sided",
    "swap_sides",
    "to_patient_sides",
    "view_key",
    "without_count",
    "written_caption",
]
