"""Encoders, the two generators, PAMR, and models on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from amvlm import weights
from amvlm.config import EncoderSettings, PretrainSettings, TrainSettings
from amvlm.errors import UserError
from amvlm.models import AmvlmModel, VisionLanguageModel, build_generator, pamr, text_product
from amvlm.models.bundle import missing_weights
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

    monkeypatch.setattr("amvlm.store.folders.write_bytes_atomically", full)
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


@pytest.mark.parametrize("by_name", [False, True])
def test_a_real_sentence_encoder_loads(minilm: Path, by_name: bool) -> None:
    vlm = VisionLanguageModel(EncoderSettings(image_size=32, text_encoder="minilm" if by_name else str(minilm)))
    assert vlm.longest_text >= 256
    text = vlm.embed_text(["left lung", "right lung", "left lung"])
    assert text.shape == (3, 128)
    assert torch.equal(text[0], text[2])
    assert not torch.allclose(text[0], text[1])


def with_text_encoder(model: AmvlmModel, name: str) -> AmvlmModel:
    torch.manual_seed(0)
    model.vlm = VisionLanguageModel(EncoderSettings(image_size=32, text_encoder=name)).eval()
    model.generator = build_generator(model.generator_settings, model.vlm, 0.05)
    return model


def test_a_model_names_its_encoder_and_does_not_hold_it(
    minilm: Path, tmp_path: Path, build_model: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_text_encoder(build_model(), "minilm")
    model.vlm.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in model.vlm.text_encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.vlm.text_head.parameters())
    model.save(tmp_path / "m")
    described = json.loads((tmp_path / "m" / "config.json").read_text())
    assert described["text_weights"] == {"name": "minilm", "sha256": weights.known("minilm").files[0].sha256}
    assert (tmp_path / "m" / "model.safetensors").stat().st_size < 20e6
    loaded = AmvlmModel.load(tmp_path / "m")
    assert torch.equal(loaded.vlm.embed_prompt(["left lung"]), model.vlm.embed_prompt(["left lung"]))
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "m" / "config.json").read_bytes()
    assert missing_weights(tmp_path / "m") is None

    monkeypatch.setenv("AMVLM_WEIGHTS", str(tmp_path / "elsewhere"))
    with pytest.raises(weights.MissingWeightsError) as caught:
        AmvlmModel.load(tmp_path / "m")
    assert str(caught.value) == (
        "the weights 'minilm' are not on this machine (91 MB, Apache-2.0). "
        "Fetch them once: amvlm weights fetch minilm"
    )
    needed = missing_weights(tmp_path / "m")
    assert needed is caught.value.weights
    assert missing_weights(tmp_path / "nowhere") is None


def test_an_encoder_that_was_changed_is_kept_in_the_model(
    minilm: Path, tmp_path: Path, build_model: Builder
) -> None:
    """As in models that were trained end to end before encoders were frozen."""
    model = with_text_encoder(build_model(), "minilm")
    with torch.no_grad():
        next(model.vlm.text_encoder.parameters()).add_(1e-3)
    model.save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["text_weights"] is None
    again = AmvlmModel.load(tmp_path / "m").vlm
    assert torch.equal(again.embed_prompt(["left lung"]), model.vlm.embed_prompt(["left lung"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "0" * 64}, "does not know"),
        ({"name": "another"}, "does not know"),
        ({"name": "../minilm"}, "damaged"),
        ({"name": "efficientnet-lite0", "sha256": weights.known("efficientnet-lite0").files[0].sha256}, "fit|not on"),
    ],
)
def test_a_strangers_names_of_encoders_are_refused(
    change: dict[str, str], said: str, minilm: Path, tmp_path: Path, build_model: Builder
) -> None:
    with_text_encoder(build_model(), "minilm").save(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    described = json.loads(config.read_text())
    described["text_weights"] |= change
    config.write_text(json.dumps(described))
    with pytest.raises(UserError, match=said):
        AmvlmModel.load(tmp_path / "m")


def test_cls_attention_is_the_encoders_own() -> None:
    """What the losses weigh tokens by equals the plain implementation's last layer, averaged over heads."""
    torch.manual_seed(0)
    vlm = VisionLanguageModel(EncoderSettings(image_size=32)).eval()
    image, texts = torch.randn(2, 3, 32, 32), vlm.tokenise(["upper left lung", "liver"])
    with torch.no_grad():
        fast, words = vlm.encode_image(image), vlm.encode_text(texts)
        vlm.image_encoder.set_attn_implementation("eager")
        vlm.text_encoder.set_attn_implementation("eager")
        slow, slow_words = vlm.encode_image(image), vlm.encode_text(texts)
        with torch.autocast("cpu", torch.bfloat16):
            vlm.image_encoder.set_attn_implementation("amvlm_cls_row")
            rough = vlm.encode_image(image)
    for one, other in ((fast, slow), (words, slow_words)):
        for part, expected in zip(one, other, strict=True):
            assert torch.allclose(part.float(), expected.float(), atol=1e-5)
    assert torch.allclose(rough.importance, slow.importance, atol=5e-3)
    assert float((rough.cls * slow.cls).sum(-1).min()) > 0.99


def test_a_word_is_the_sum_of_its_pieces_and_padding_is_no_word() -> None:
    torch.manual_seed(0)
    vlm = VisionLanguageModel(EncoderSettings(image_size=32)).eval()
    texts = vlm.tokenise(["xyzzy, left lung.", "left lung and left lung", ""])
    assert texts.words.tolist() == [[0, 1, 2, -1, -1], [1, 2, 3, 1, 2], [-1] * 5]
    with torch.no_grad():
        tokens = vlm.encode_text(texts)
        hidden = vlm.text_encoder(input_ids=texts.ids, attention_mask=texts.attended).last_hidden_state
        expected = torch.nn.functional.normalize(vlm.word_head(hidden[0, 1:6].sum(0)), dim=-1)  # x ##y ##z ##z ##y
    assert torch.allclose(tokens.tokens[0, 0], expected, atol=1e-5)
    assert tokens.mask.sum(1).tolist() == [3, 5, 0]
    assert float(tokens.tokens[2].abs().max()) == 0


def test_prompts_differ_by_a_side_for_the_generator(build_model: Builder) -> None:
    model = build_model()
    texts = [f"{level} {side} lung" for level in ("upper", "lower") for side in ("left", "right")]
    prompts = model.vlm.embed_prompt(texts).detach()
    assert prompts.shape == (4, model.vlm.prompt_size)
    assert torch.equal(prompts[:, :128], model.vlm.embed_text(texts))
    model.generator.fit_text(prompts)
    axes = (prompts - model.generator.text_mean) @ model.generator.text_axes
    assert float((axes[0] - axes[1]).norm()) > 0.5
    assert int((model.generator.text_axes.abs().sum(0) > 0).sum()) == 3  # four texts differ along three axes


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 48)])
def test_images_of_one_channel_and_of_any_grid(channels: int, size: int, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    folder = tmp_path / "vit"
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**shape, image_size=32, patch_size=16, num_channels=channels)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    vlm = VisionLanguageModel(EncoderSettings(image_encoder=str(folder), image_size=size))
    tokens = vlm.encode_image(torch.randn(2, 3, size, size))
    assert tokens.tokens.shape == (2, (size // 16) ** 2, 128)  # positions are interpolated
    with pytest.raises(UserError, match="cannot be cut into patches of 16"):
        VisionLanguageModel(EncoderSettings(image_encoder=str(folder), image_size=40))


@pytest.mark.parametrize(("kind", "other"), [("image_encoder", "text"), ("text_encoder", "image")])
def test_an_encoder_of_another_kind_is_refused(kind: str, other: str, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    folder = tmp_path / "encoder"
    model = BertModel(BertConfig(**shape, vocab_size=50)) if other == "text" else ViTModel(ViTConfig(**shape))
    model.save_pretrained(folder)
    with pytest.raises(UserError, match=r"is not an? (image|text) encoder"):
        VisionLanguageModel(EncoderSettings(image_size=32, **{kind: str(folder)}))


def test_a_folder_with_a_pickle_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32).save_pretrained(
        tmp_path
    )
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not read"):
        VisionLanguageModel(EncoderSettings(image_size=32, text_encoder=str(tmp_path)))


def test_presets_fill_what_is_not_given() -> None:
    paper = PretrainSettings(preset="paper", encoders={"image_encoder": "tiny"})
    assert (paper.encoders.image_encoder, paper.encoders.text_encoder) == ("tiny", "paper")
    assert (paper.encoders.image_size, paper.learning_rate) == (224, 5e-5)
    assert PretrainSettings(preset="small", learning_rate=1e-2).learning_rate == 1e-2
    assert PretrainSettings(preset="tiny").encoders == EncoderSettings()
    usual = PretrainSettings()
    assert (usual.encoders.image_encoder, usual.encoders.text_encoder) == ("efficientnet-lite0", "minilm")


def test_the_papers_preset_sets_every_option_of_the_paper() -> None:
    paper = PretrainSettings(preset="paper")
    assert paper.encoders.image_size == 224
    assert (paper.uncertainty, paper.positives, paper.locked) == ("exp_paper", "diagonal", False)
    assert (paper.generator.form, paper.generator.pamr_iterations) == ("frozen_linear", 10)
    assert not paper.mask_supervision
    assert paper.text_learning_rate_share == 1
    assert PretrainSettings(preset="paper", generator={"pamr_iterations": 0}).generator.form == "frozen_linear"
    assert PretrainSettings(preset="paper", positives="multi_positive").positives == "multi_positive"
    with pytest.raises(ValueError, match="film_unet learns from accepted masks"):
        PretrainSettings(preset="paper", generator={"form": "film_unet"})
    training = TrainSettings(preset="paper")
    assert not training.by_minutes
    assert (training.targets, training.merge, training.student.network) == ("three", "logit_mean", "unet")
    assert TrainSettings(preset="paper", steps=50, student={"dropout": 0.0}).student.network == "unet"
    with pytest.raises(ValueError, match="not both"):
        TrainSettings(preset="paper", minutes=3)



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
