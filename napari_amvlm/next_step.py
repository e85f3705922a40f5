"""What to do next, in one line. No window is needed here."""

from __future__ import annotations

from dataclasses import dataclass

_OUTLINE = "Outline it with a box (8) or the brush (2), then A accepts."
ENOUGH = 5
"""Labels of a structure from which a training is worth its time."""


@dataclass(frozen=True)
class Progress:
    """How far the labels of one structure are.

    Parameters
    ----------
    cases : int
        Of the study, those kept for testing included.
    testing : int
        Kept for testing.
    accepted, absent, skipped, rejected : int
        Cases with that judgement, of all cases.
    """

    cases: int
    testing: int = 0
    accepted: int = 0
    absent: int = 0
    skipped: int = 0
    rejected: int = 0

    @property
    def judged(self) -> int:
        return self.accepted + self.absent


@dataclass(frozen=True)
class Situation:
    """What the window shows; ``structure`` is "" where the study has none."""

    study: bool = False
    scan: bool = False
    structure: str = ""
    progress: Progress = Progress(0)
    known: bool = False
    """Whether the model in use was taught the structure."""
    prompted: bool = False
    labelled: bool = False
    """Whether the label on screen holds anything."""
    judged: bool = False
    left: int = 0
    """Cases that wait for a judgement."""
    trained: bool = False
    """Whether a model was trained in this study."""
    training: bool = False


def what_next(now: Situation) -> str:
    """One sentence, or "" where a scan is only looked at."""
    if not now.study:
        return "This scan is in no study: make one to keep labels (Study ▸ New study…)." if now.scan else (
            "Open a study to label scans, or a single scan to look at it. "
            "New here? Study ▸ Hippocampus sample opens forty scans with a model."
        )  # fmt: skip
    if not now.progress.cases:
        return "Add scans: Study ▸ Add scans…"
    if not now.structure:
        return "Name what you want to outline: New… beside Structure. Or start painting; the first stroke asks."
    if now.left == 0:
        return f"{all_judged(now.progress)} {_train(now)}".strip()
    if not now.scan or now.judged:
        return "J opens the next case."
    if now.labelled:
        return "Check every slice, correct with the brush (2), then A accepts."
    if now.prompted:
        return "Nothing is outlined: use a box (8) or the brush (2), or press N if it is not in this scan."
    if now.known:
        return "Press Enter in the prompt: the model outlines it for you."
    if now.progress.accepted < ENOUGH:
        count = f"{now.progress.accepted} of {ENOUGH}"
        return f"{_OUTLINE} After {ENOUGH} labels, train ({count} so far)."
    return _train(now) or _OUTLINE


def _train(now: Situation) -> str:
    if now.training:
        return "A training is running: you can go on labelling."
    if now.trained and now.known:
        return "Training again learns from every label since."
    return f"{now.progress.judged} cases are judged: open Plugins ▸ AMVLM ▸ Train." if now.progress.judged else ""


def all_judged(progress: Progress) -> str:
    """That no case waits any more, and where those are that are not judged."""
    others = (
        (progress.skipped, "skipped"), (progress.rejected, "rejected"), (_kept(progress), "kept for testing"),
    )  # fmt: skip
    apart = ", ".join(f"{count} {what}" for count, what in others if count)
    return f"No case is left to judge: {progress.judged} of {progress.cases} are judged{f', {apart}' * bool(apart)}."


def _kept(progress: Progress) -> int:
    """Test cases that nobody judged."""
    return max(0, min(progress.testing, progress.cases - progress.judged - progress.skipped - progress.rejected))
