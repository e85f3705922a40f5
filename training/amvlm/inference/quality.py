"""Which pseudo-labels are good (METHOD §5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.inference.evaluate import default_device, prompt_of
from amvlm.inference.session import Session
from amvlm.models import AmvlmModel
from amvlm.models.quality import foretold
from amvlm.store import Case, LabelStore, Quality, Structure
from amvlm.store.records import Split


def assess(
    model: AmvlmModel,
    store: LabelStore,
    split: Split = "train",
    progress: Callable[[int, int], None] | None = None,
) -> list[Quality]:
    """Look at the pseudo-label of every case and structure that nobody judged yet, and keep what is seen in the store.

    See :func:`assessing`, which this runs to its end.
    """
    steps = assessing(model, store, split)
    while True:
        try:
            done, total = next(steps)
        except StopIteration as end:
            found: list[Quality] = end.value
            return found
        if progress is not None:
            progress(done, total)


def assessing(
    model: AmvlmModel, store: LabelStore, split: Split = "train"
) -> Generator[tuple[int, int], None, list[Quality]]:
    """The same step by step: yields (cases done, cases in all). Closed early, what was seen so far is kept.

    Raises
    ------
    UserError
        If the model makes no predictions, or knows none of the study's structures.
    """
    known = [structure.name for structure in model.card.structures]
    names = [structure.name for structure in store.structures()]
    structures = [structure for structure in store.structures() if structure.name in known]
    if model.student is None or not structures:
        raise UserError(
            f"this model predicts {model.card.known_names() if model.student else 'nothing'}; the study has "
            f"{', '.join(names) or 'no structure'}",
            remedy="Choose a model that was trained on this study.",
        )
    found: list[Quality] = []
    embeddings: dict[str, NDArray[np.float32]] = {}
    try:
        yield from _look(model, store, store.cases(split), structures, found, embeddings)
    finally:
        found = _with_distance(found, embeddings, {r.case_id for r in store.snapshot().revisions})
        store.save_quality(found)
    return found


def _look(
    model: AmvlmModel,
    store: LabelStore,
    cases: Sequence[Case],
    structures: Sequence[Structure],
    found: list[Quality],
    embeddings: dict[str, NDArray[np.float32]],
) -> Iterator[tuple[int, int]]:
    captions, states = store.captions(), store.states()
    judged = {r.case_id for r in store.snapshot().revisions}
    for done, case in enumerate(cases):
        open_structures = [s for s in structures if states.get((case.case_id, s.name), "unknown") in _OPEN]
        if open_structures or case.case_id in judged:
            session = Session(model, store.read_image(case), default_device())
            embeddings[case.case_id] = session.image_embedding()
        for structure in open_structures:
            signs = session.signs(prompt_of(case, structure, captions))
            own = model.card.structure_of(structure.prompt)
            if signs is not None and own is not None:
                dice = foretold(own.expected_dice, signs)
                expected = None if dice is None else round(dice, 4)
                found.append(
                    Quality(
                        case.case_id, structure.name, model.fingerprint, expected, **dataclasses.asdict(signs),
                        flags=signs.flags(), distance=None,
                    )
                )  # fmt: skip
        yield done + 1, len(cases)


_OPEN = ("unknown", "draft", "skipped")


def _with_distance(
    found: Sequence[Quality], embeddings: dict[str, NDArray[np.float32]], judged: set[str]
) -> list[Quality]:
    """How far each case lies from the judged ones, when the farthest are taken first (k-centre greedy).

    A case's distance is measured to the judged cases and to those that come before it in that order, so sorting by
    it gives the order itself.
    """
    waiting = sorted({q.case_id for q in found})
    if not waiting:
        return list(found)
    points = np.stack([embeddings[case_id] for case_id in waiting])
    centres = [embeddings[case_id] for case_id in sorted(judged) if case_id in embeddings]
    nearest = 1 - (points @ np.stack(centres).T).max(1) if centres else np.full(len(points), 2.0)
    distance: dict[str, float] = {}
    for _ in waiting:
        farthest = int(np.argmax(nearest))
        distance[waiting[farthest]] = float(nearest[farthest])
        nearest = np.where(np.isneginf(nearest), nearest, np.minimum(nearest, 1 - points @ points[farthest]))
        nearest[farthest] = -np.inf
    return [dataclasses.replace(q, distance=round(distance[q.case_id], 5)) for q in found]
