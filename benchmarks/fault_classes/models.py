"""A stranger's model."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fault_classes import makers
from fault_classes.makers import TINY, bundled
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class


def _segment(place: Place, change: Callable[[Path], object], refused: bool = True) -> None:
    """Use the bundled model, changed."""
    model = place.work / "model"
    shutil.copytree(bundled(), model)
    change(model)
    place.allow(place.work / "m.nii.gz")
    scan = makers.scans(place.work / "scans") / "good_0.nii.gz"
    use = place.refused if refused else place.run
    use(
        "segment", scan, "--prompt", "anterior hippocampus", "-o", place.work / "m.nii.gz", "--model", model, seconds=30
    )
    if refused:
        place.expect(not (place.work / "m.nii.gz").exists(), "a mask was written all the same")


def _config(path: list[str], value: object, file: str = "config.json") -> Callable[[Path], None]:
    def change(model: Path) -> None:
        described = json.loads((model / file).read_text())
        inner: Any = described
        for key in path[:-1]:
            inner = inner[int(key) if isinstance(inner, list) else key]
        inner[path[-1]] = value
        (model / file).write_text(json.dumps(described))

    return change


def _raw(file: str, content: bytes | None) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / file).unlink()
        if content is not None:
            (model / file).write_bytes(content)

    return change


@fault_class(2, "absurd sizes in a model's description")
def sizes() -> Iterator[Trial]:
    for path, value in [
        ("image num_hidden_layers", 10**6), ("text num_hidden_layers", 10**6), ("image hidden_size", 2**31),
        ("text vocab_size", 2**33), ("text max_position_embeddings", 2**34), ("image intermediate_size", 10**9),
        ("image image_size", 10**7), ("image patch_size", 0), ("image num_attention_heads", 0),
        ("image num_attention_heads", 10**9), ("image hidden_size", -1), ("image num_channels", 10**8),
        ("encoders embedding_size", 10**9), ("encoders image_size", 10**6), ("generator channels", [10**6] * 5),
        ("generator channels", [8] * 10**5), ("student channels", [10**7, 16]), ("student channels", [1] * 10**6),
        ("student planes", 10**9), ("generator pamr_iterations", 10**9), ("image hidden_size", "big"),
        ("image num_hidden_layers", 2000), ("text hidden_size", 65536),
    ]:  # fmt: skip
        yield f"{path} {str(value)[:20]}", partial(_segment, change=_config(path.split(), value))
    yield "a student of 10⁶ structures", partial(_segment, change=_many_structures)
    yield "config.json nested 10⁵ deep", partial(_segment, change=_raw("config.json", b"[" * 10**5))
    yield "a config.json of 100 MB", partial(_segment, change=_raw("config.json", b"[" + b"0," * 5 * 10**7 + b"0]"))


def _many_structures(model: Path) -> None:
    described = json.loads((model / "card.json").read_text())
    described["structures"] = [{"name": f"s{number}"} for number in range(10**6)]
    (model / "card.json").write_text(json.dumps(described))


def _tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def act(model: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors")

    return act


def _first(tensors: dict[str, Any], part: str = "") -> str:
    return next(name for name in sorted(tensors) if name.startswith(part) and tensors[name].is_floating_point())


@fault_class(2, "weights and formats that cannot be right")
def weights() -> Iterator[Trial]:
    import torch

    for value in (float("nan"), float("inf"), -float("inf")):
        for part in ("generator", "vlm", "student"):
            yield f"{value} in the {part}'s weights", partial(
                _segment, change=_tensors(lambda t, p=part, v=value: t[_first(t,
                p)].view(-1)[:1].fill_(v)))  # fmt: skip
    yield "a tensor missing", partial(_segment, change=_tensors(lambda t: t.pop(_first(t))))
    yield "another shape", partial(_segment, change=_tensors(lambda t: t.update({_first(t): torch.zeros(3, 5)})))
    yield "complex weights", partial(_segment, change=_tensors(
        lambda t: t.update({_first(t): t[_first(t)].to(torch.complex64)})))  # fmt: skip
    yield "a tensor too many", partial(_segment, refused=False, change=_tensors(
        lambda t: t.update({"evil": torch.zeros(3)})))  # fmt: skip
    yield "half precision", partial(_segment, refused=False, change=_tensors(
        lambda t: t.update({n: v.half() for n, v in t.items() if v.is_floating_point()})))  # fmt: skip
    for number in (99, -1, 0, "x", None, 2**70):
        yield f"format {number}", partial(_segment, change=_config(["format"], number))
    for path, wrong in (("image_type", "gpt2"), ("image_type", "../../evil"), ("text_type", 5), ("prior", "nan"),
                        ("prior", -3), ("prior", 1e400), ("generator form", "exec"), ("student network", "__import__"),
                        ("image hidden_act", "__import__('os')"), ("text hidden_act", 5)):  # fmt: skip
        yield f"{path} {wrong}", partial(_segment, change=_config(path.split(), wrong))
    for name, content in (("empty", b""), ("cut", None), ("random", os.urandom(3000)),
                          ("header of 2⁶³ bytes", struct.pack("<Q", 2**63 - 1) + b"{}"),
                          ("header of 1 GB", struct.pack("<Q", 2**30) + b"{}"),
                          ("offsets beyond the end", _safetensors({"a": {"dtype": "F32", "shape": [2**40],
                                                                         "data_offsets": [0, 2**42]}})),
                          ("offsets that overlap", _safetensors({"a": {"dtype": "F32", "shape": [1],
                                                                       "data_offsets": [0, 4]},
                                                                 "b": {"dtype": "F32", "shape": [1],
                                                                       "data_offsets": [2, 6]}}))):  # fmt: skip
        yield f"model.safetensors {name}", partial(_segment, change=_cut if content is None else _raw(
            "model.safetensors", content))  # fmt: skip


def _cut(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _safetensors(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@fault_class(2, "tokenizers")
def tokenizers() -> Iterator[Trial]:
    for name, content in [
        ("missing", None), ("empty", b""), ("a list", b"[]"), ("no JSON", b"\xff\xfe"), ("deep", b"[" * 10**5),
        ("no model", b'{"version": "1.0"}'), ("cut", b'{"version":"1.0","truncation":null,"paddi'),
        ("unknown model", b'{"version":"1.0","model":{"type":"Evil"}}'), ("a number", b"5"), ("null", b"null"),
    ]:  # fmt: skip
        yield name, partial(_segment, change=_raw("tokenizer.json", content))
    yield "a vocabulary of another size", partial(_segment, change=_vocabulary(10**5), refused=True)
    yield "a vocabulary without [PAD]", partial(_segment, change=_vocabulary(0), refused=False)
    yield "a pattern that takes for ever", partial(_segment, refused=False, change=_config(
        ["normalizer"], {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
        "tokenizer.json"))  # fmt: skip
    yield "truncation to nothing", partial(_segment, refused=False, change=_config(
        ["truncation"], {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0},
        "tokenizer.json"))  # fmt: skip
    yield "padding to 10⁹", partial(_segment, refused=False, change=_config(
        ["padding"], {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                      "pad_type_id": 0, "pad_token": "[PAD]"}, "tokenizer.json"))  # fmt: skip


def _vocabulary(size: int) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        described = json.loads((model / "tokenizer.json").read_text())
        vocabulary = described["model"]["vocab"]
        if size:
            vocabulary |= {f"word{number}": number for number in range(len(vocabulary), size)}
            for word in ("anterior", "hippocampus"):
                vocabulary[word] = size - 1
        else:
            vocabulary.pop("[PAD]", None)
        (model / "tokenizer.json").write_text(json.dumps(described))

    return change


@fault_class(2, "model cards")
def cards() -> Iterator[Trial]:
    for path, value in [
        ("structures", []), ("structures", 5), ("structures 0 name", ""), ("structures 0 name", "x" * 10**6),
        ("structures 0 prior", 5), ("structures 0 text_weight", -1), ("laterality", "both"), ("name", 5),
        ("kind", "evil"), ("modality", ["a"]), ("structures 0 expected_dice", {"means": [1]}),
        ("structures 0 expected_dice", 5), ("structures 0 expected_dice means", ["nan"] * 6),
        ("validation", {"a": {"b": "c"}}), ("settings", [1]), ("revisions", [10**40]), ("structures 0 aliases", [5]),
    ]:  # fmt: skip
        yield f"{path} {str(value)[:20]}", partial(
            _segment, change=_config(path.split(), value, "card.json"), refused=False)  # fmt: skip
    for name, content in (("empty", b""), ("no JSON", b"\xff"), ("deep", b"[" * 10**5), ("a list", b"[]"),
                          ("missing", None), ("NaN", b"NaN")):  # fmt: skip
        yield f"card.json {name}", partial(_segment, change=_raw("card.json", content))


@fault_class(2, "one damaged model beside sound ones")
def damaged_beside() -> Iterator[Trial]:
    def trial(place: Place, make: str, command: str) -> None:
        study = place.study("trained" if command != "train" else "plain")
        bad = study / "models" / "newest"
        bad.mkdir(parents=True)
        path = bad / "card.json"
        if make == "pipe":
            os.mkfifo(path)
        elif make == "folder":
            path.mkdir()
        elif make == "link":
            path.symlink_to("/dev/zero")
        else:
            path.write_bytes({"broken": b"{", "empty": b"", "binary": b"\xff" * 99, "deep": b"[" * 10**5,
                              "list": b"[]", "unnamed": b"{}"}[make])  # fmt: skip
        place.allow(study / "models" / "next", study / "runs", study / "store.sqlite")
        if command == "train":
            place.fine("train", study, "--name", "next", *TINY, seconds=40)
        elif command == "quality":
            place.fine("quality", study, "--model", "own", seconds=40)
        elif command == "quality of the newest":
            place.run("quality", study, seconds=40)
        else:
            place.fine("evaluate", study, "--split", "val", "--model", "own", seconds=40)

    for make in ("broken", "empty", "binary", "deep", "list", "unnamed", "folder", "pipe", "link"):
        yield f"card.json {make}, quality", partial(trial, make=make, command="quality")
    for make in ("broken", "folder", "pipe"):
        yield f"card.json {make}, evaluate", partial(trial, make=make, command="evaluate")
        yield f"card.json {make}, train", partial(trial, make=make, command="train")
    for make in ("broken", "empty", "link"):
        yield f"card.json {make}, quality of the newest", partial(trial, make=make, command="quality of the newest")
