"""Locked towers: frozen encoders, their tokens computed once, heads that learn from these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from amvlm.config import EncoderSettings, PretrainSettings
from amvlm.errors import UserError
from amvlm.learning import locked, pretrain
from amvlm.learning.locked import VIEWS, LockedTowers
from amvlm.learning.slices import SliceBank
from amvlm.models import AmvlmModel, VisionLanguageModel, towers
from amvlm.models.backbones import EfficientNetLite0, flat_name
from amvlm.models.towers import LiteTower, MedSamTower, load_tower
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

SIZE = 32
ENCODERS = EncoderSettings(image_size=SIZE, embedding_size=32)
QUICK = {
    "encoders": ENCODERS, "towers": "locked", "steps": 5, "generator_steps": 2, "checkpoint_every": 2, "batch_size": 4,
    "validate_every": 2, "precision": "fp32", "device": "cpu", "generator": {"network": "unet", "channels": (8, 16)},
}  # fmt: skip


def events_of(store: LabelStore, name: str, folder: RunFolder | None = None, **more: object) -> Iterator[object]:
    changed = PretrainSettings(**{**QUICK, **{key: more.pop(key) for key in list(more) if key in ("encoders",)}})
    folder = folder or RunFolder.new(store.folder)
    with folder:
        yield from pretrain(store, changed, folder, name, **more)  # type: ignore[arg-type]


def loaded(store: LabelStore, name: str) -> AmvlmModel:
    return AmvlmModel.load(store.folder / "models" / name)


def opened(store: LabelStore, vlm: VisionLanguageModel, flip_axis: int | None = 3) -> LockedTowers:
    cases = {case.case_id: case for case in store.cases()[:2]}
    bank = SliceBank(store, SIZE)
    list(bank.prepare(list(cases.values())))
    found = LockedTowers(store, vlm.eval(), bank, cases, flip_axis, False)
    list(found.prepare(list(cases)))
    return found


@pytest.fixture
def vlm() -> VisionLanguageModel:
    torch.manual_seed(0)
    return VisionLanguageModel(ENCODERS)


def test_only_the_heads_learn_and_a_kill_changes_no_byte(captioned_store: LabelStore) -> None:
    list(events_of(captioned_store, "whole"))
    folder = RunFolder.new(captioned_store.folder)
    for _ in events_of(captioned_store, "broken", folder):
        if list((folder.path / "align").glob("checkpoint-*2/state.json")):
            break  # killed with two steps on disk
    list(events_of(captioned_store, "broken", folder, resume=True))
    torch.manual_seed(0)
    start = VisionLanguageModel(ENCODERS).state_dict()
    whole, broken = (loaded(captioned_store, name).vlm.state_dict() for name in ("whole", "broken"))
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, broken[name])] == []
    moved = {name.split(".")[0] for name, tensor in whole.items() if not torch.equal(tensor, start[name])}
    assert moved == {"image_head", "patch_head", "text_head", "word_head"}
    kept = next((folder.path / "align").glob("*/tensors.safetensors"))
    assert kept.stat().st_size < 4 * sum(tensor.nbytes for tensor in start.values())  # no encoder is in it


def test_a_second_run_reads_no_image_again(captioned_store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    list(events_of(captioned_store, "one"))

    def made(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(LockedTowers, "_made", made)
    list(events_of(captioned_store, "two"))
    with pytest.raises(AssertionError, match="made again"):
        list(events_of(captioned_store, "three", encoders=ENCODERS.model_copy(update={"image_size": 48})))


def test_tokens_are_made_again_when_cut_and_lie_apart_by_weights(
    sample_store: LabelStore, vlm: VisionLanguageModel
) -> None:
    folder = opened(sample_store, vlm)._folder
    path = next(folder.glob("*.npy"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    opened(sample_store, vlm)
    assert path.read_bytes() == whole
    with torch.no_grad():
        next(vlm.image_encoder.parameters()).add_(1e-3)
    assert opened(sample_store, vlm)._folder != folder


def test_cached_tokens_are_those_of_the_views(sample_store: LabelStore, vlm: VisionLanguageModel) -> None:
    found = opened(sample_store, vlm)
    case_id = next(iter(found._cases))
    image = found._bank.slabs([(case_id, 2)])
    raw = found.images([(case_id, 2)] * VIEWS, range(VIEWS))
    assert raw.tokens.shape == (VIEWS, found.patches, vlm.image_width)
    for view, shown in ((0, image), (1, image.flip(3))):
        with torch.no_grad():
            seen = vlm.read_image(shown)
        assert torch.allclose(raw.cls[view], seen.cls[0], atol=2e-3)
        assert torch.allclose(raw.tokens[view], seen.tokens[0], atol=5e-3)  # 4 × 4 patches: none are averaged
    assert not torch.allclose(raw.tokens[2], raw.tokens[0], atol=0.01)
    rng = np.random.default_rng(0)
    for one, other in found.two_views([True] * 20 + [False] * 20, rng):
        assert one != other
        assert one % 2 == other % 2
    assert all(one % 2 for one, _ in found.two_views([True] * 9, rng))


def test_many_patches_are_averaged_to_seven_a_side() -> None:
    tokens = torch.arange(196.0).view(1, 196, 1).expand(1, 196, 3)
    packed = locked._packed(towers_raw(tokens), 49).float()
    assert packed.shape == (1, 50, 4)
    assert packed[0, 1, 0] == (0 + 1 + 14 + 15) / 4


def towers_raw(tokens: torch.Tensor) -> locked.RawTokens:
    return locked.RawTokens(tokens.mean(1), tokens, torch.ones(tokens.shape[:2]))


def test_a_text_is_read_alike_alone_and_in_any_batch(sample_store: LabelStore, vlm: VisionLanguageModel) -> None:
    found = opened(sample_store, vlm)
    texts = ["left lung", "unilateral infection, upper right lung"]
    raw = found.texts(texts)
    assert torch.equal(found.texts(texts[:1]).tokens[0], raw.tokens[0, :2])
    tokenised = vlm.tokenise(texts)
    with torch.no_grad():
        one, other = vlm.encode_text(tokenised, raw), vlm.encode_text(tokenised)
    for mine, theirs in zip(one, other, strict=True):
        assert torch.allclose(mine.float(), theirs.float(), atol=1e-5)
    wordings = {found.wording(texts[1], np.random.default_rng(n)) for n in range(40)}
    assert 1 < len(wordings) <= locked.WORDINGS


def test_lite0_makes_a_grid_of_patches_and_keeps_its_statistics() -> None:
    tower = LiteTower().train()
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    hidden = tower(torch.randn(2, 3, 112, 112)).last_hidden_state
    assert hidden.shape == (2, 1 + 49, tower.config.hidden_size)
    assert torch.allclose(hidden[:, 0], hidden[:, 1:].mean(1), atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())


def test_litemedsam_makes_the_same_grid_and_keeps_its_statistics() -> None:
    tower = MedSamTower().train()
    assert not any(module.training for module in tower.body.modules())
    with torch.no_grad():
        hidden = tower(torch.randn(1, 3, 32, 32)).last_hidden_state
    assert hidden.shape == (1, 1 + 4, tower.config.hidden_size)


def test_a_registered_tower_is_locked_saved_and_loaded(
    captioned_store: LabelStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    body = EfficientNetLite0().state_dict()
    save_file({flat_name(name): tensor for name, tensor in body.items()}, tmp_path / "model.safetensors")
    monkeypatch.setattr(towers, "find", lambda _: tmp_path)
    encoders = EncoderSettings(image_encoder="efficientnet-lite0", image_size=SIZE, embedding_size=32)
    list(events_of(captioned_store, "lite", encoders=encoders))
    model = loaded(captioned_store, "lite")
    assert isinstance(model.vlm.image_encoder, LiteTower)
    kept = model.vlm.image_encoder.body.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in body.items())
    save_file({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="do not fit the network"):
        load_tower("efficientnet-lite0")
    with pytest.raises(UserError, match="cannot be cut into patches of 16 px"):
        VisionLanguageModel(encoders.model_copy(update={"image_size": 40}))


def test_which_encoders_are_locked() -> None:
    def of(**changed: object) -> bool:
        return PretrainSettings(**changed).locked

    assert of()
    assert not of(preset="tiny")
    assert not of(encoders={"text_encoder": "tiny"})  # a text encoder from scratch must learn
    assert of(preset="tiny", towers="locked")
    assert not of(preset="locked", towers="unfrozen")
    assert PretrainSettings(preset="locked").steps == 3000
    assert PretrainSettings(preset="locked", steps=5).steps == 5
