"""What the window goes by, without a window: undo, what to do next, the state that everything shares."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amvlm.store import LabelStore
from amvlm.store.memory import recall
from napari_amvlm.engine import ModelEntry
from napari_amvlm.next_step import ENOUGH, Progress, Situation, all_judged, what_next
from napari_amvlm.undoing import Judgement, to_undo
from napari_amvlm.wording import named
from napari_amvlm.workspace import Workspace

A, B = Judgement("case-00001", "liver", "accepted"), Judgement("case-00002", "spleen", "skipped")


# -- undo ---------------------------------------------------------------------------------------------------------


def test_undo_takes_back_the_last_judgement_wherever_it_was() -> None:
    assert to_undo([A, B], "case-00003", "liver", "unknown") == B
    assert to_undo([A], "case-00003", "liver", "draft") == A
    assert to_undo([A], "", "", "unknown") == A
    assert to_undo([], "case-00003", "liver", "unknown") is None


def test_undo_means_the_case_on_screen_where_that_one_was_judged() -> None:
    assert to_undo([A, B], "case-00009", "liver", "absent") == Judgement("case-00009", "liver", "absent")


# -- what next ----------------------------------------------------------------------------------------------------

OPEN = Situation(study=True, scan=True, structure="liver", progress=Progress(60), left=60)


def so(**changes: Any) -> str:
    return what_next(Situation(**{**OPEN.__dict__, **changes}))


def test_every_step_has_one_line() -> None:
    assert "Hippocampus sample" in what_next(Situation())
    assert "in no study" in what_next(Situation(scan=True))
    assert "Add scans" in so(progress=Progress(0), scan=False)
    assert "New…" in so(structure="")
    assert f"1 of {ENOUGH} so far" in so(progress=Progress(60, accepted=1))
    assert "Train" in so(progress=Progress(60, accepted=ENOUGH))
    assert "running" in so(progress=Progress(60, accepted=ENOUGH), training=True)
    assert "Press Enter" in so(known=True)
    assert "A accepts" in so(known=True, prompted=True, labelled=True)
    assert "press N" in so(known=True, prompted=True)
    assert "J opens" in so(judged=True)
    assert so(left=0, progress=Progress(60, 4, 56)).startswith("No case is left to judge: 56 of 60 are judged, 4 kept")


def test_what_is_not_judged_is_counted() -> None:
    assert all_judged(Progress(60, 8, 40, 10, 2)) == (
        "No case is left to judge: 50 of 60 are judged, 2 skipped, 8 kept for testing."
    )
    assert all_judged(Progress(3, 0, 3)) == "No case is left to judge: 3 of 3 are judged."
    assert "kept for testing" not in all_judged(Progress(3, 1, 3))  # the test case was judged too


def test_cases_are_named_by_their_files() -> None:
    assert named("case-00025 is open", {"case-00025": "scan 7.nii"}) == "scan 7.nii is open"
    assert named("case-00026 is open", {"case-00025": "scan 7.nii"}) == "case-00026 is open"


# -- the workspace ------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    made = LabelStore.create(tmp_path / "study")
    made.add_structure("liver")
    return made


def entry(name: str, kind: str = "trained") -> ModelEntry:
    return ModelEntry(name, Path(name), kind, ("liver",))


def scan(case_id: str) -> Any:
    return SimpleNamespace(opened=SimpleNamespace(case=SimpleNamespace(case_id=case_id)))


def test_another_study_starts_afresh(store: LabelStore, tmp_path: Path) -> None:
    workspace = Workspace()
    workspace.open_study(store, "liver")
    workspace.show(scan("case-00001"))
    workspace.prompted("liver", "the liver")
    workspace.judged(A)
    changed: list[object] = []
    workspace.study_changed.connect(lambda: changed.append(workspace.store))
    other = LabelStore.create(tmp_path / "other")
    workspace.open_study(other, "")
    assert changed == [other]
    assert (workspace.case_id, workspace.case_asked_for, workspace.prompt_of("liver")) == ("", "", "")
    assert workspace.judgements == ()


def test_the_study_remembers_its_model_case_and_structure(store: LabelStore) -> None:
    first = Workspace()
    first.open_study(store, "liver")
    first.list_models([entry("old")])
    first.remember_model()  # a training starts
    first.list_models([entry("new"), entry("old")])
    assert first.model == entry("old")
    first.show(scan("case-00007"))
    again = Workspace()
    again.open_study(store, "liver")
    again.list_models([entry("new"), entry("old")])
    assert again.model == entry("old")  # a newer model is not a better one
    again.use("new")
    again.list_models([entry("new"), entry("old")])
    assert again.model == entry("new")
    again.list_models([entry("old")])
    assert again.model == entry("old")  # what is remembered may be gone
    assert recall(store.store_id).case_id == "case-00007"


def test_without_a_study_the_chosen_model_stays() -> None:
    workspace = Workspace()
    workspace.list_models([entry("a", "pretrained"), entry("b")])
    assert workspace.model == entry("b")
    workspace.use("a")
    workspace.list_models([entry("b"), entry("a", "pretrained")])
    assert workspace.model == entry("a", "pretrained")
    workspace.list_models([])
    assert workspace.model is None


def test_the_newest_thing_that_is_waited_for_is_shown_until_it_ends() -> None:
    workspace, shown = Workspace(), []
    workspace.busy_changed.connect(lambda done, total, text: shown.append((done, total, text)))
    first, second = object(), object()
    workspace.begin("Importing …", first)
    workspace.go_on(1, 3, "1 of 3", first)
    workspace.begin("Opening …", second)
    workspace.go_on(2, 3, "2 of 3", first)  # the older one is heard no more
    workspace.end(first)
    assert shown[-1] == (0, 0, "Opening …")
    assert workspace.busy
    workspace.end(second)
    assert shown[-1] == (0, 0, "")
    workspace.stop_waiting()
    assert len(shown) == 4
