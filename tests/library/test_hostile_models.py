"""A stranger's model: nothing of it runs or hangs, every fault is a sentence, and the other models stay usable."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from amvlm.config import GeneratorSettings, StudentSettings
from amvlm.errors import UserError
from amvlm.inference.catalogue import available_models, base_model, bundled_model_folder, damaged_models, model_in_use
from amvlm.models import AmvlmModel
from amvlm.store import LabelStore

Change = Callable[[Path], None]
LAST_S, LAST_MB = 10.0, 400


def config(**changes: Any) -> Change:
    """Change ``config.json``; ``part__key`` changes a part's key, ``...`` removes it."""

    def change(folder: Path) -> None:
        described = json.loads((folder / "config.json").read_text())
        described["weights_sha256"] = ""
        for name, value in changes.items():
            *parts, key = name.split("__")
            table = described
            for part in parts:
                table = table[part]
            if value is ...:
                table.pop(key)
            else:
                table[key] = value
        (folder / "config.json").write_text(json.dumps(described))

    return change


def by_steps(**student: Any) -> Change:
    """The description of a model by steps, with something odd about its student."""
    settings = StudentSettings().model_dump(mode="json") | student
    return config(generator=GeneratorSettings().model_dump(mode="json"), plan=..., student=settings)


def card(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "card.json").write_text(json.dumps(json.loads((folder / "card.json").read_text()) | changes))

    return change


def tokenizer(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        known = json.loads((folder / "tokenizer.json").read_text())
        for name, value in changes.items():
            *parts, key = name.split("__")
            table = known
            for part in parts:
                table = table[part]
            table[key] = value
        (folder / "tokenizer.json").write_text(json.dumps(known))

    return change


def text(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def weights(act: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        act(tensors)
        save_file(tensors, folder / "model.safetensors")
        config()(folder)

    return change


def first_to(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    def act(tensors: dict[str, torch.Tensor]) -> None:
        name = next(n for n in tensors if n.startswith("vlm.") and tensors[n].ndim == 2)
        tensors[name].view(-1)[0] = value

    return act


def huge(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and name.startswith("generator") and tensor.ndim > 1:
            tensor.fill_(3e38)


def header(table: dict[str, Any], claimed: int | None = None) -> Change:
    def change(folder: Path) -> None:
        encoded = json.dumps(table).encode()
        content = struct.pack("<Q", len(encoded) if claimed is None else claimed) + encoded
        (folder / "model.safetensors").write_bytes(content)
        config()(folder)

    return change


def sparse(folder: Path) -> None:
    size = 40 << 30
    table = {"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    header(table)(folder)
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size + size)


def pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        kept = folder.parent / f"outside-{name}"
        shutil.move(folder / name, kept)
        (folder / name).symlink_to(target or kept)

    return change


def as_folder(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


DEEP = "[" * 100_000 + "]" * 100_000
STRUCTURE = {"name": "liver"}
LATER = {"type": "Replace", "pattern": {"Regex": r"(\w+\s*)+#"}, "content": ""}
LARGE_TOKEN = {"id": 10**6, "content": "[X]", "single_word": False, "lstrip": False, "rstrip": False,
               "normalized": False, "special": True}  # fmt: skip
CARDS: dict[str, Change] = {
    "card not JSON": text("card.json", "{"),
    "card deep": text("card.json", DEEP),
    "card empty": text("card.json", ""),
    "card a list": text("card.json", "[]"),
    "card not UTF-8": text("card.json", b"\xff\xfe{}"),
    "card of 20 MB": text("card.json", " " * (20 << 20) + "{}"),
    "card name climbs": card(name="../../labels"),
    "card name absolute": card(name="/etc/passwd"),
    "card name a number": card(name=7),
    "card kind": card(kind="executable"),
    "card laterality": card(laterality="left"),
    "card 10,000 structures": card(structures=[STRUCTURE] * 10_000),
    "card long name": card(structures=[{"name": "x" * 10**6}]),
    "card prior NaN": card(structures=[STRUCTURE | {"prior": float("nan")}]),
    "card weight": card(structures=[STRUCTURE | {"text_weight": 7}]),
    "card expected Dice": card(
        structures=[STRUCTURE | {"expected_dice": {"mean_dice": 0.5, "means": [1], "weights": [1], "cases": 1}}]
    ),
    "card a pipe": pipe("card.json"),
    "card a link": link("card.json", ""),
    "card a link to a device": link("card.json", "/dev/zero"),
    "card a folder": as_folder("card.json"),
}
OTHERS: dict[str, Change] = {
    "config not JSON": text("config.json", "{"),
    "config deep": text("config.json", DEEP),
    "config of 2 MB": text("config.json", " " * (2 << 20) + "{}"),
    "config a pipe": pipe("config.json"),
    "10^6 layers": config(image__num_hidden_layers=10**6),
    "10^6 text layers": config(text__num_hidden_layers=10**6),
    "60 layers": config(image__num_hidden_layers=60),
    "no layers": config(image__num_hidden_layers=-1),
    "wide": config(image__hidden_size=10**7),
    "wide and fitting the bound": config(image__hidden_size=16_384, image__intermediate_size=16_384),
    "no width": config(image__hidden_size=0),
    "no heads": config(image__num_attention_heads=0),
    "heads that do not divide": config(image__num_attention_heads=7),
    "patch 0": config(image__patch_size=0),
    "patch 1": config(image__patch_size=1, encoders__image_size=1024),
    "patch a list": config(image__patch_size=[8, 8]),
    "channels of images": config(image__num_channels=10**6),
    "vocabulary": config(text__vocab_size=10**12),
    "positions": config(text__max_position_embeddings=10**9),
    "another size": config(encoders__image_size=65_536),
    "embedding": config(encoders__embedding_size=10**9),
    "generator's channels": config(generator__channels=[10**6] * 5),
    "generator's levels": config(generator__channels=[8] * 10_000),
    "PAMR": config(generator__pamr_iterations=10**9),
    "student's network": by_steps(network="__import__('os')"),
    "student's channels": by_steps(channels=[2048] * 8),
    "student's dropout": by_steps(dropout="all"),
    "student's planes": by_steps(planes=10**9, dimensions=3),
    "format 99": config(format=99),
    "format a word": config(format="three"),
    "prior NaN": config(prior=float("nan")),
    "prior 0": config(prior=0),
    "image type unknown": config(image_type="timm_wrapper"),
    "text type a path": config(text_type="../../evil"),
    "auto_map": config(image__auto_map={"AutoModel": "evil--code.Model"}),
    "kernels of a hub": config(image__attn_implementation="evil/kernel"),
    "quantisation": config(image__quantization_config={"quant_method": "gptq"}),
    "an activation": config(image__hidden_act="os.system"),
    "an activation of a hub": config(image__hidden_act="evil/kernel:act"),
    "NaN in a setting": config(image__layer_norm_eps=float("nan")),
    "a sequence for a number": config(image__hidden_size=[128]),
    "weights NaN": weights(first_to(float("nan"))),
    "weights infinite": weights(first_to(float("-inf"))),
    "weights 3e38": weights(huge),
    "weights renamed": weights(lambda t: t.update({"evil": t.popitem()[1]})),
    "weights missing": weights(lambda t: t.popitem()),
    "weights more": weights(lambda t: t.update({"more": torch.zeros(3)})),
    "weights double": weights(lambda t: t.update({n: v.double() for n, v in t.items() if v.is_floating_point()})),
    "weights of another shape": weights(lambda t: t.update({n: v[:1].clone() for n, v in t.items() if v.ndim == 2})),
    "weights changed by a bit": lambda folder: flip(folder / "model.safetensors"),
    "weights cut": lambda folder: os.truncate(folder / "model.safetensors", 10_000),
    "weights empty": text("model.safetensors", b""),
    "weights a pickle": text("model.safetensors", b"\x80\x04cos\nsystem\n(S'touch /tmp/canary'\ntR."),
    "header longer than the file": header({}, claimed=2**62),
    "header of a negative shape": header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
    "header overlapping": header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}),
    "header sparse, 40 GB": sparse,
    "weights a link": link("model.safetensors", ""),
    "weights a pipe": pipe("model.safetensors"),
    "tokenizer not JSON": text("tokenizer.json", "{"),
    "tokenizer deep": text("tokenizer.json", DEEP),
    "tokenizer empty": text("tokenizer.json", "{}"),
    "tokenizer of 40 MB": text("tokenizer.json", " " * (40 << 20)),
    "tokenizer regex": tokenizer(normalizer=LATER),
    "tokenizer regex of words": tokenizer(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Isolated", "invert": False}
    ),
    "tokenizer ids": tokenizer(added_tokens=[LARGE_TOKEN]),
    "tokenizer special ids": tokenizer(
        post_processor__special_tokens={
            "[CLS]": {"id": "[CLS]", "ids": [10**6], "tokens": ["[CLS]"]},
            "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
        }
    ),
    "tokenizer without unknown": tokenizer(model__unk_token="[NOBODY]", model__vocab={"[PAD]": 0}),
    "tokenizer of another kind": tokenizer(model__type="Evil"),
    "tokenizer a link": link("tokenizer.json", "/dev/zero"),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x10
    path.write_bytes(content)


def peak_mb() -> float:
    """The most memory that this process ever held; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)


def refused(folder: Path) -> str:
    began, before = time.monotonic(), peak_mb()
    with pytest.raises(UserError) as raised:
        AmvlmModel.load(folder)
    assert time.monotonic() - began < LAST_S
    assert peak_mb() - before < LAST_MB
    return str(raised.value)


@pytest.mark.skipif(sys.platform == "win32", reason="some variants are pipes and links")
@pytest.mark.parametrize("change", [*CARDS, *OTHERS])
def test_a_strangers_model_is_refused_in_a_sentence(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(bundled_model_folder(), folder)
    {**CARDS, **OTHERS}[change](folder)
    sentence = refused(folder)
    assert str(tmp_path) not in sentence
    assert len(sentence) < 400


def test_a_model_built_by_us_is_not_refused(tmp_path: Path, build_model: Callable[..., AmvlmModel]) -> None:
    build_model().save(tmp_path / "ours")
    loaded = AmvlmModel.load(tmp_path / "ours")
    assert loaded.student is not None
    config(**{"stray": {"nobody": "knows"}})(tmp_path / "ours")
    card(stray=[1, 2, 3])(tmp_path / "ours")
    assert AmvlmModel.load(tmp_path / "ours").fingerprint == loaded.fingerprint


@pytest.mark.skipif(sys.platform == "win32", reason="some variants are pipes and links")
def test_damaged_models_take_none_of_the_others_down(
    sample_store: LabelStore, build_model: Callable[..., AmvlmModel], tmp_path: Path
) -> None:
    models = sample_store.folder / "models"
    build_model().save(models / "sound")
    for number, change in enumerate(CARDS.values()):
        folder = models / f"damaged {number}"
        shutil.copytree(bundled_model_folder(), folder)
        change(folder)
    (models / "linked").symlink_to(bundled_model_folder())
    (models / "a file").write_text("")
    shutil.copytree(bundled_model_folder(), models / "odd; name")
    assert set(available_models(sample_store)) == {"sound", "bundled"}
    assert len(damaged_models(sample_store)) == len(CARDS)
    assert model_in_use(sample_store) == models / "sound"
    assert base_model(sample_store) == bundled_model_folder()


def test_a_name_from_a_file_is_never_a_folder(sample_store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bundled_model_folder(), sample_store.folder.parent / "theirs")
    monkeypatch.chdir(sample_store.folder.parent)
    assert base_model(sample_store, "theirs") == Path("theirs")
    with pytest.raises(UserError, match="there is no model 'theirs'"):
        base_model(sample_store, "theirs", folders=False)
    for odd in ("x" * 10_000, "a\0b"):
        with pytest.raises(UserError, match="there is no model"):
            base_model(sample_store, odd)
