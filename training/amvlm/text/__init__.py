"""Captions and prompts: words in, words out; no tensors here."""

from amvlm.text.captions import (
    MAX_PROMPT_CHARACTERS,
    checked_prompt,
    class_derangement,
    for_model_side,
    mentions,
    names_a_side,
    normalise_caption,
    slice_caption,
    swap_sides,
)

__all__ = [
    "MAX_PROMPT_CHARACTERS",
    "checked_prompt",
    "class_derangement",
    "for_model_side",
    "mentions",
    "names_a_side",
    "normalise_caption",
    "slice_caption",
    "swap_sides",
]
