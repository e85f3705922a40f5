"""What a run learns to read: many wordings of a structure, foreign words with an empty target, and nothing held out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from amvlm.cli import main
from amvlm.learning.study import Study, open_study
from amvlm.learning.texts import FOREIGN_SHARE, TextTable
from amvlm.models import AmvlmModel
from amvlm.models.generator import TEXT_AXES, principal_axes, standardised
from amvlm.store import LabelStore
from amvlm.text import normalise_caption
from amvlm.text.read import read_prompt
from amvlm.text.study_words import Known
from amvlm.text.wordings import TEMPLATES, foreign_words, held_out, taught, taught_foreign, terms

TABLE = Path(__file__).parents[2] / "benchmarks" / "words.csv"
HIPPOCAMPUS = (Known("anterior hippocampus", ("Anterior",)), Known("posterior hippocampus", ("Posterior",)))
STUDIES = (
    HIPPOCAMPUS,
    (*HIPPOCAMPUS, Known("whole hippocampus")),
    (Known("pulmonary infection"),),
    (Known("right ventricle"), Known("myocardium"), Known("left ventricle")),
    (Known("liver"), Known("spleen"), Known("kidney_left"), Known("kidney_right"), Known("inferior_vena_cava")),
    (Known("liver"),),
)


@pytest.fixture
def study(sample_store: LabelStore) -> Study:
    return open_study(sample_store)


# -- words ---------------------------------------------------------------------------------------------


def test_the_list_of_held_out_wordings_is_that_of_the_table() -> None:
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "held out"]
    prompts = {normalise_caption(row["prompt"]) for row in rows}
    assert held_out() <= prompts
    names = {normalise_caption(text) for known in STUDIES for s in known for text in (s.name, *s.aliases)}
    assert {text for text in prompts - held_out() - names if text.isascii()} <= {"vertebrae_l1"}


@pytest.mark.parametrize("known", STUDIES)
def test_nothing_held_out_is_taught(known: tuple[Known, ...]) -> None:
    for structure in known:
        own = {normalise_caption(text) for text in (structure.name, *structure.aliases)}
        texts = taught(structure, known, 64)
        assert own <= set(texts)
        assert len(texts) == len(set(texts)) <= 64
        assert {read_prompt(text, known).structure for text in texts} == {structure.name}
        secret = held_out() - own
        framed = {template.format(text) for text in secret for template in TEMPLATES}
        assert not framed & set(texts)
    assert not set(taught_foreign(known, 10_000)) & held_out()
    assert taught(known[0], known, 64) == taught(known[0], known, 64)


def test_a_synonym_that_is_held_out_is_known_but_not_taught() -> None:
    assert "caput hippocampi" in terms(HIPPOCAMPUS[0], HIPPOCAMPUS)
    assert not any("caput hippocampi" in text for text in taught(HIPPOCAMPUS[0], HIPPOCAMPUS, 1000))


def test_a_prompt_that_names_a_place_is_no_wording_of_the_whole() -> None:
    infection = Known("pulmonary infection", (), ("infection left base", "lung infection"))
    texts = taught(infection, (infection,), 64)
    assert "lung infection" in texts
    assert not any("left" in text or "base" in text for text in texts)
    kidney = Known("kidney_left")
    assert "left kidney" in taught(kidney, (kidney, Known("kidney_right")), 64)


@pytest.mark.parametrize("known", STUDIES)
def test_foreign_words_show_nothing_in_the_study(known: tuple[Known, ...]) -> None:
    foreign = foreign_words(known)
    assert len(foreign) > 500
    assert {"bread", "prostate"} <= set(foreign)
    assert all(read_prompt(text, known).refusal for text in taught_foreign(known, 100))
    overlapping = {
        "anterior hippocampus": {"subiculum", "dentate gyrus", "brain", "head", "hippocampus", "hippocampal tail"},
        "pulmonary infection": {"lung", "chest", "lung apex", "lung nodule", "lesion"},
        "right ventricle": {"heart", "interventricular septum", "chest", "myocardial scar"},
        "liver": {"abdomen", "liver cyst", "liver segment 4", "fat"},
    }[known[0].name]
    assert not overlapping & set(foreign)
    assert ("spleen" in foreign) == (known != STUDIES[4])


# -- the table of a run --------------------------------------------------------------------------------


def test_training_draws_wordings_and_validation_the_prompt(study: Study) -> None:
    table, cases = TextTable(study), [next(iter(study.training))] * 200
    plain = {table.texts[int(row)] for row in table.rows(cases, None).flatten()}
    assert plain == {"anterior hippocampus", "posterior hippocampus"}
    rows = table.rows(cases, np.random.default_rng(0))
    drawn = [{table.texts[int(row)] for row in column} for column in rows.T]
    assert min(len(texts) for texts in drawn) > 20
    for structure, texts in zip(study.structures, drawn, strict=True):
        assert {read_prompt(text, study.structures).structure for text in texts} == {structure.name}
    share = float((rows[:, 0] == table.rows(cases[:1], None)[0, 0]).float().mean())
    assert 0.6 < share < 0.8
    assert torch.equal(table.rows(cases, np.random.default_rng(0), wordings=False), table.rows(cases, None))  # targets
    control = TextTable(study, wordings=False)
    assert torch.equal(control.rows(cases, np.random.default_rng(0)), control.rows(cases, None))


@pytest.mark.parametrize("shape", [(800,), (400, 2)])
def test_an_eighth_is_foreign_with_an_empty_target(study: Study, shape: tuple[int, ...]) -> None:
    table = TextTable(study)
    rows, masks = torch.zeros(shape, dtype=torch.int64), torch.ones(*shape, 3, 3)
    texts, named = table.with_foreign(rows, masks, np.random.default_rng(0))
    empty = named.flatten(len(shape)).amax(-1) == 0
    assert 0.1 < float(empty.float().mean()) < 1 / 6
    assert abs(float(empty.float().mean()) - FOREIGN_SHARE) < 0.03
    assert {table.texts[int(row)] for row in texts[empty]} <= set(table.foreign)
    assert bool((texts[~empty] == 0).all())
    assert bool((named[~empty] == 1).all())
    assert bool(masks.all())
    assert not rows.any()
    control = TextTable(study, wordings=False)
    assert control.with_foreign(rows, masks, np.random.default_rng(0))[1] is masks


def test_a_large_study_keeps_a_bounded_table(study: Study) -> None:
    assert len(TextTable(study).texts) < 2 * (2 * 64 + 256)


# -- the axes along which prompts are read -------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_one_text_leaves_axes_and_no_noise(noise: float) -> None:
    torch.manual_seed(0)
    text, other = torch.randn(2, 96)
    texts = text + noise * torch.randn(3, 96)
    mean, axes = principal_axes(texts)
    assert int((axes.norm(dim=0) > 0).sum()) == TEXT_AXES
    again = standardised(text * (1 + 1e-6), mean, axes)
    assert float(again.abs().max()) < 1e-3  # rounding was blown up 1,000-fold
    assert float(standardised(other, mean, axes).abs().mean()) > 0.3
    assert torch.equal(axes, principal_axes(texts)[1])


def test_two_texts_are_told_apart_by_their_difference_alone() -> None:
    torch.manual_seed(0)
    texts = torch.randn(2, 96)
    mean, axes = principal_axes(texts)
    assert int((axes.norm(dim=0) > 0).sum()) == 1
    assert not torch.allclose(*standardised(texts, mean, axes))


# -- runs ----------------------------------------------------------------------------------------------


def test_a_run_by_minutes_keeps_its_bases_real_encoder(
    minilm: Path, sample_store: LabelStore, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    study, cpu = str(sample_store.folder), ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
    none = ["--preset", "tiny", "--steps", "0", "--generator-steps", "0"]
    main(["pretrain", study, "--name", "base", "--text-encoder", "minilm", "--image-size", "32", *none, *cpu])
    main(["train", study, "--model", "base", "--name", "m", *cpu])
    folder = sample_store.folder / "models" / "m"
    assert json.loads((folder / "config.json").read_text())["text_weights"]["name"] == "minilm"
    assert (folder / "model.safetensors").stat().st_size < 16e6
    model = AmvlmModel.load(folder)
    assert model.plan is not None
    axes = model.generator.text_axes
    assert int((axes.norm(dim=0) > 0).sum()) == TEXT_AXES
    assert capsys.readouterr().out
