"""Captions and prompts: words in, words out; no tensors here."""

from amvlm.text.captions import (
    MAX_PROMPT_CHARACTERS,
    Side,
    checked_prompt,
    class_derangement,
    for_model_side,
    low_side,
    mentions,
    names_a_side,
    normalise_caption,
    swap_sides,
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
    "MAX_PROMPT_CHARACTERS",
    "Side",
    "caption_view",
    "checked_prompt",
    "class_derangement",
    "clauses_of",
    "for_model_side",
    "low_side",
    "mentions",
    "names_a_place",
    "names_a_side",
    "normalise_caption",
    "one_level",
    "one_sided",
    "swap_sides",
    "view_key",
    "without_count",
    "written_caption",
]
