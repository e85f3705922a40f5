"""Fingerprint and plan: how a network is fitted to a study (METHOD §8)."""

from amvlm.planning.fingerprint import (
    CaseFacts,
    Fingerprint,
    Intensities,
    Machine,
    MaskFacts,
    StructureFacts,
    bounding_box,
    foreground_sample,
    intensities,
    looks_like_hounsfield,
    mask_facts,
    overlap,
    structure_facts,
    turn_deg,
)
from amvlm.planning.plan import OTHER, WIDTHS, Normalisation, Plan, Reason
from amvlm.planning.rules import make_plan

__all__ = [
    "OTHER",
    "WIDTHS",
    "CaseFacts",
    "Fingerprint",
    "Intensities",
    "Machine",
    "MaskFacts",
    "Normalisation",
    "Plan",
    "Reason",
    "StructureFacts",
    "bounding_box",
    "foreground_sample",
    "intensities",
    "looks_like_hounsfield",
    "make_plan",
    "mask_facts",
    "overlap",
    "structure_facts",
    "turn_deg",
]
