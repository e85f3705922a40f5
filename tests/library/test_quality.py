"""How good a pseudo-label probably is, and which case to label next."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable

import numpy as np
import pytest
import torch

from amvlm.errors import UserError
from amvlm.inference import assess
from amvlm.models import AmvlmModel
from amvlm.models.quality import ExpectedDice, QualityFeatures, judged_dice
from amvlm.store import LabelStore, Quality, queue

Builder = Callable[..., AmvlmModel]
NAMES = ("anterior hippocampus", "posterior hippocampus")


def square(low: int, high: int, logit: float = 10.0) -> torch.Tensor:
    logits = torch.full((1, 10, 10), -logit)
    logits[:, low:high, low:high] = logit
    return logits


def test_signs_worked_by_hand() -> None:
    # two squares of 16 pixels that share 4; α 0 is the teacher
    signs = QualityFeatures.of(square(0, 4), square(2, 6), 0.0)
    assert signs.agreement == pytest.approx(2 * 4 / 32)
    assert signs.foreground == pytest.approx(0.16)
    assert signs.components == 1
    assert signs.soft_dice == pytest.approx(1.0, abs=1e-3)
    assert signs.confidence == pytest.approx(1.0, abs=1e-3)
    assert signs.entropy == pytest.approx(0.0, abs=1e-2)
    unsure = QualityFeatures.of(square(0, 4, 0.1), square(2, 6, 0.1), 0.0)
    assert unsure.soft_dice < 0.4
    assert unsure.confidence == pytest.approx(torch.tensor(0.1).sigmoid().item(), abs=1e-6)


def test_flags_name_what_to_look_at() -> None:
    assert QualityFeatures.of(square(0, 10), square(0, 10), 0.5).flags() == ("nearly everything is foreground",)
    assert QualityFeatures.of(square(0, 3), square(5, 8), 0.0).flags() == ("text mask and prediction do not meet",)
    assert QualityFeatures.of(square(0, 0), square(0, 0), 0.5).flags() == ("empty",)
    assert QualityFeatures.of(square(0, 4), square(0, 4), 0.5).flags() == ()


def test_expected_dice_follows_the_sign_that_tells() -> None:
    rng = np.random.default_rng(0)
    signs, dices = [], []
    for _ in range(60):
        agreement = float(rng.uniform(0.2, 1))
        signs.append(QualityFeatures(agreement, float(rng.uniform()), 0.9, 0.3, 0.1, 1))
        dices.append(0.9 * agreement + float(rng.normal(0, 0.02)))
    fitted = ExpectedDice.fit(signs, dices)
    assert fitted is not None
    for agreement in (0.3, 0.9):
        assert fitted.of(QualityFeatures(agreement, 0.5, 0.9, 0.3, 0.1, 1)) == pytest.approx(0.9 * agreement, abs=0.05)
    assert fitted == ExpectedDice.model_validate_json(fitted.model_dump_json())


def test_one_case_foretells_its_own_dice_and_none_nothing() -> None:
    signs = QualityFeatures(0.5, 0.5, 0.9, 0.3, 0.1, 1)
    only = ExpectedDice.fit([signs], [0.7])
    assert only is not None
    assert only.of(signs) == pytest.approx(0.7)
    assert only.of(dataclasses.replace(signs, agreement=0.9)) > 0.75  # what is assumed before cases were seen
    assert ExpectedDice.fit([], []) is None


def test_a_few_cases_that_are_alike_do_not_exaggerate() -> None:
    rng = np.random.default_rng(1)
    alike = [
        QualityFeatures(0.89 + rng.normal(0, 0.01), 0.95 + rng.normal(0, 1e-3), 0.94, 0.35, 0.02, 1) for _ in range(5)
    ]
    fitted = ExpectedDice.fit(alike, [0.82, 0.81, 0.84, 0.83, 0.80])
    assert fitted is not None
    worse = fitted.of(QualityFeatures(0.4, 0.80, 0.85, 0.9, 0.005, 3))
    assert 0.4 < worse < 0.75  # a poor look lowers it, and does not swing it


def test_nothing_predicted_of_nothing_there_is_right() -> None:
    empty, full = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    assert judged_dice(empty, empty) == 1
    assert judged_dice(full, empty) == 0
    assert judged_dice(empty, full) == 0
    assert judged_dice(full, full) == 1


def seen(case_id: str, **values: float) -> Quality:
    common = {
        "expected_dice": 0.5, "agreement": 0.5, "soft_dice": 0.5, "confidence": 0.9, "entropy": 0.1,
        "foreground": 0.1, "components": 1, "distance": 0.1,
    }  # fmt: skip
    return Quality(case_id, "a", "f", flags=(), **{**common, **values})


def test_orders_of_the_queue() -> None:
    found = [seen("x", expected_dice=0.2), seen("y", agreement=0.1), seen("z", distance=0.9)]
    assert queue(found, "worst")[0] == "x"
    assert queue(found, "disagreement")[0] == "y"
    assert queue(found, "diverse")[0] == "z"
    assert sorted(queue(found, "random", 1)) == ["x", "y", "z"]
    assert queue(found, "random", 1) == queue(found, "random", 1)
    other = dataclasses.replace(seen("y", expected_dice=0.1), structure="b")  # the worst structure counts
    assert queue([*found, other], "worst")[0] == "y"


def test_assessing_keeps_what_is_seen_of_unjudged_cases(sample_store: LabelStore, build_model: Builder) -> None:
    model = build_model(names=NAMES)
    rejected = next(c.case_id for c in sample_store.cases("train") if not sample_store.current(c.case_id, NAMES[0]))
    sample_store.mark(rejected, NAMES[0], "rejected")
    found = assess(model, sample_store)
    judged = {r.case_id for r in sample_store.snapshot().revisions}
    waiting = {c.case_id for c in sample_store.cases("train")} - judged
    assert {q.case_id for q in found} == waiting
    assert [q.structure for q in found if q.case_id == rejected] == [NAMES[1]]
    kept = sample_store.quality()
    assert len(kept) == len(found) == 2 * len(waiting) - 1
    for q in found:
        assert dataclasses.replace(kept[q.case_id, q.structure], time="") == q
        assert q.distance is not None
        assert q.expected_dice is None  # never calibrated
    assert len(assess(model, sample_store)) == len(sample_store.quality())  # replaced, not added


def test_a_model_of_other_structures_is_refused_with_both_lists(sample_store: LabelStore, build_model: Builder) -> None:
    with pytest.raises(UserError, match="predicts liver; the study has anterior hippocampus, posterior hippocampus"):
        assess(build_model(names=("liver",)), sample_store)


def test_a_study_of_the_version_before_opens_with_its_labels(sample_store: LabelStore) -> None:
    labels = sample_store.snapshot()
    with sqlite3.connect(sample_store.folder / "store.sqlite") as connection:
        connection.executescript(
            "DROP TABLE quality; ALTER TABLE case_ RENAME COLUMN source_laterality TO laterality; "
            "UPDATE meta SET schema_version = 1;"
        )
    again = LabelStore(sample_store.folder)
    assert again.snapshot() == labels
    assert again.quality() == {}
    assert LabelStore(sample_store.folder).snapshot() == labels
