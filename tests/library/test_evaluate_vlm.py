"""Retrieval, zero-shot masks, sides and levels, on pictures whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amvlm.cli import main
from amvlm.errors import UserError
from amvlm.exchange import import_study
from amvlm.inference import evaluate, evaluate_vlm
from amvlm.models import AmvlmModel
from amvlm.models.grounding import otsu_mask
from amvlm.store import LabelStore

Builder = Callable[..., AmvlmModel]
BOTH = "bilateral infection, two infected areas, upper left lung and lower right lung"
LEFT, RIGHT = "unilateral infection, one infected area, lower left lung", "unilateral infection, upper right lung"
BOXES = {"upper left": (4, 4), "lower right": (20, 20), "lower left": (20, 4), "upper right": (4, 20)}


@pytest.fixture
def pictures(tmp_path: Path) -> LabelStore:
    """Captions in the image's sides; each named zone holds a bright box of 8 px in a picture of 32."""
    folder = tmp_path / "Test_Folder"
    for name in ("img", "labelcol"):
        (folder / name).mkdir(parents=True)
    rows = ["Image,Description"]
    for n, caption in enumerate([BOTH, BOTH, LEFT, RIGHT]):
        mask = np.zeros((32, 32), np.uint8)
        for zone, (row, column) in BOXES.items():
            if zone in caption:
                mask[row : row + 8, column : column + 8] = 255
        noise = np.random.default_rng(n).integers(0, 40, mask.shape, np.uint8)
        Image.fromarray(mask // 2 + noise).save(folder / "img" / f"{n}.png")
        Image.fromarray(mask).save(folder / "labelcol" / f"{n}.png")
        rows.append(f'{n}.png,"{caption}"')
    (folder / "text.csv").write_text("\n".join(rows))
    import_study(folder, tmp_path / "study", structure="infection", split="test")
    return LabelStore(tmp_path / "study")


def oracle(model: AmvlmModel, swapped: bool = False) -> AmvlmModel:
    """A generator that draws what the words say; with ``swapped`` on the wrong side."""
    model.card = model.card.model_copy(update={"laterality": "image", "labelled_cases": 1})
    model.vlm.read_image_sides(())  # BOXES are named as in the picture
    said: list[str] = []
    true = model.vlm.embed_prompt

    def remember(texts: list[str]) -> torch.Tensor:
        said[:] = map(model.vlm._own_words, texts)
        return true(texts)

    def draw(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        logits = torch.full((len(image), 1, 32, 32), -5.0)
        for b, caption in enumerate(said):
            for zone, (row, column) in BOXES.items():
                if zone in caption:
                    column = 24 - column if swapped else column
                    # network squares lie as (x, y), x towards the image's left, y upwards
                    logits[b, 0, 24 - column : 32 - column, 24 - row : 32 - row] = 5.0
        return logits

    model.vlm.embed_prompt = remember  # type: ignore[method-assign]
    model.generator.forward = draw  # type: ignore[method-assign]
    return model


def test_a_perfect_generator_is_seen_as_one(pictures: LabelStore, build_model: Builder) -> None:
    found = evaluate_vlm(oracle(build_model(names=("infection",))), pictures, "test")
    assert found.text_mask is not None
    assert found.text_mask.mean_dice == 1
    sides = found.sides["text mask"]
    assert (sides.cases, sides.share, sides.one_word, sides.dice) == (2, 1, 1, 1)
    assert sides.unprompted == 0.5
    levels = found.levels["text mask"]
    assert (levels.cases, levels.moved, levels.empty) == (2, 1, 0)
    assert levels.shift == pytest.approx(0.5)


def test_a_generator_of_wrong_sides_is_seen_too(pictures: LabelStore, build_model: Builder) -> None:
    found = evaluate_vlm(oracle(build_model(names=("infection",)), swapped=True), pictures, "test")
    assert found.sides["text mask"].share == 0
    assert found.text_mask is not None
    assert found.text_mask.mean_dice == 0


def test_captions_reach_a_model_of_image_sides_as_they_were_imported(
    pictures: LabelStore, build_model: Builder
) -> None:
    """The study holds the patient's sides; a model of the image's sides swaps them back, in one place."""
    model = oracle(build_model(names=("infection",)))
    true, asked = model.vlm.embed_prompt, []
    model.vlm.embed_prompt = lambda texts: (asked.extend(map(model.vlm._own_words, texts)), true(texts))[1]  # type: ignore[method-assign]
    evaluate(model, pictures, "test")
    assert set(asked) == {BOTH, LEFT, RIGHT}


def test_a_duplicate_caption_is_a_hit(pictures: LabelStore, build_model: Builder) -> None:
    retrieval = evaluate_vlm(build_model(names=("infection",)), pictures, "test").retrieval
    assert retrieval is not None
    assert (retrieval.pairs, retrieval.captions) == (4, 3)
    assert retrieval.majority[1] == 0.5
    assert retrieval.image_to_text[5] == retrieval.text_to_image[5] == 1


def test_empty_captions_are_a_control(pictures: LabelStore, build_model: Builder) -> None:
    found = evaluate_vlm(oracle(build_model(names=("infection",))), pictures, "test", captions="empty")
    assert found.retrieval is None
    assert found.text_mask is not None
    assert found.text_mask.mean_dice == 0


def test_without_captions_it_says_so(sample_store: LabelStore, build_model: Builder) -> None:
    with pytest.raises(UserError, match="no case of the split “test” has a caption"):
        evaluate_vlm(build_model(), sample_store, "test")


def test_a_flat_map_has_no_mask() -> None:
    flat, half = torch.zeros(4, 4), torch.cat([torch.zeros(2, 4), torch.ones(2, 4)])
    assert otsu_mask(torch.stack([flat, half])).sum((1, 2)).tolist() == [0, 8]


def test_the_command_line_prints_the_table(
    pictures: LabelStore, build_model: Builder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model(names=("infection",))
    model.save(pictures.folder / "models" / "m")
    main(["evaluate", str(pictures.folder), "--vlm", "--json", str(tmp_path / "found.json")])
    assert "recall@10" in capsys.readouterr().out
    assert "zero_shot" in (tmp_path / "found.json").read_text()
