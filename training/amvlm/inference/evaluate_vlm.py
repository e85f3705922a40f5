"""What a vision-language model knows by itself: retrieval, text masks without masks, sides and levels (METHOD §7)."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amvlm.config import Captions, GeneratorSettings
from amvlm.errors import UserError
from amvlm.imaging import canonical_mask
from amvlm.imaging.halves import half
from amvlm.imaging.resample import IntensityScale, SliceGrid, slabs
from amvlm.inference.evaluate import default_device, evenly_chosen
from amvlm.losses import bag_similarity
from amvlm.metrics import Overlap, Summary, summarise
from amvlm.models import AmvlmModel
from amvlm.models.grounding import otsu_mask, patch_similarity
from amvlm.store import Case, LabelStore
from amvlm.store.records import Split
from amvlm.text import LOW_SIDE, Side, class_derangement, one_level, one_sided, swap_sides

KS = (1, 5, 10)
_BATCH = 32
_LEVELS: tuple[Literal["upper", "lower"], ...] = ("upper", "lower")


@dataclass(frozen=True)
class Retrieval:
    """Recall@k in [0, 1]; a duplicate of the right caption is a hit. ``majority`` always answers the commonest."""

    pairs: int
    captions: int
    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    majority: dict[int, float]


@dataclass(frozen=True)
class Sides:
    """One-side prompts on images whose finding is on both sides.

    ``share`` is the mean share of thresholded mask on the named side (an empty mask counts 0), ``one_word`` the same
    for two prompts that differ in the word left/right alone, ``unprompted`` that of the whole caption; ``dice`` is
    against the half of the expert mask on the named side.
    """

    cases: int
    share: float
    one_word: float
    unprompted: float
    dice: float
    empty: int


@dataclass(frozen=True)
class Levels:
    """Prompts for the upper and for the lower part of findings on both levels.

    ``moved`` is how often the mask of the upper one lies higher (an empty mask counts as no), ``shift`` by how much of
    the height on average, ``empty`` how many cases had an empty mask.
    """

    cases: int
    moved: float
    shift: float
    empty: int


@dataclass
class VlmEvaluation:
    """Figures of one model on one split; Dice on the voxel grid, per-case means."""

    model: str
    split: str
    retrieval: Retrieval | None = None
    zero_shot: Summary | None = None
    text_mask: Summary | None = None
    sides: dict[str, Sides] = field(default_factory=dict)
    levels: dict[str, Levels] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """The figures as (what, measure, value)."""
        if self.retrieval is not None:
            r = self.retrieval
            pool = f"{r.pairs} images, {r.captions} different captions"
            for k in KS:
                yield f"retrieval ({pool})", f"image → text, recall@{k}", f"{r.image_to_text[k]:.3f}"
                yield "", f"the {k} commonest captions" if k > 1 else "the commonest caption", f"{r.majority[k]:.3f}"
                yield "", f"text → image, recall@{k}", f"{r.text_to_image[k]:.3f}"
        for kind, summary in (("zero-shot (Otsu)", self.zero_shot), ("text mask", self.text_mask)):
            if summary is not None:
                yield kind, f"mean Dice of {summary.cases - summary.empty_truths} cases", f"{summary.mean_dice:.3f}"
                yield "", "pooled Dice", f"{summary.pooled_dice:.3f}"
        for kind, sides in self.sides.items():
            yield f"{kind}, one-side prompts", f"share on the named side, {sides.cases} cases", f"{sides.share:.3f}"
            yield "", "the same, one word changed", f"{sides.one_word:.3f}"
            yield "", "larger side's share without naming one", f"{sides.unprompted:.3f}"
            yield "", "Dice against that half", f"{sides.dice:.3f}"
        for kind, levels in self.levels.items():
            yield f"{kind}, upper and lower", f"the upper one lies higher, {levels.cases} cases", f"{levels.moved:.3f}"
            yield "", "by, of the height", f"{levels.shift:.3f}"


@dataclass
class _Scene:
    """A case at network resolution, with its caption and its expert mask on the canonical voxel grid."""

    case: Case
    caption: str
    grid: SliceGrid
    slabs: Tensor
    truth: NDArray[np.uint8] | None

    def back(self, squares: Tensor) -> Tensor:
        """(Z, size, size) → the canonical grid, slices first."""
        return self.grid.from_square(squares[:, None].float())[:, 0]


def evaluate_vlm(
    model: AmvlmModel,
    store: LabelStore,
    split: Split,
    structure: str = "",
    limit: int = 0,
    progress: Callable[[int, int], None] | None = None,
    captions: Captions = "true",
) -> VlmEvaluation:
    """Measure the vision-language model on the captions of a split.

    Parameters
    ----------
    structure : str
        Whose expert masks to measure against; empty for the only one, or the first.
    limit : int
        Evenly chosen cases; 0 for all.
    captions : {"true", "shuffled", "empty"}
        What the text masks are prompted with; retrieval is only measured with the true ones.

    Raises
    ------
    UserError
        If no case of the split has a caption.
    """
    device = default_device()
    model.to(device).eval()
    captioned = store.captions()
    cases = [case for case in store.cases(split) if case.case_id in captioned]
    if not cases:
        raise UserError(f"no case of the split “{split}” has a caption", remedy="Choose another split.")
    cases = evenly_chosen(cases, limit)
    found = VlmEvaluation(model.card.name, split)
    tests: dict[str, _PromptTests] = {"zero-shot": _PromptTests(model, zero_shot=True)}
    form = model.generator_settings
    if isinstance(form, GeneratorSettings) and (model.card.labelled_cases or form.form == "frozen_linear"):
        tests["text mask"] = _PromptTests(model, zero_shot=False)
    embedded: list[Tensor] = []
    own_captions: list[str] = []
    every = [text for case in cases for _, text in store.captions()[case.case_id]]
    swap = class_derangement(every, 0) if captions == "shuffled" else {}
    name = structure or store.structures()[0].name
    done = 0
    for scenes in _batches(_scenes(store, cases, name, model)):
        own_captions += [scene.caption for scene in scenes]
        for scene in scenes:
            scene.caption = "" if captions == "empty" else swap.get(scene.caption, scene.caption)
        with torch.inference_mode():
            embedded += _embed(model, scenes, device)
            for test in tests.values():
                test.see(scenes, device)
        done += len(scenes)
        if progress is not None:
            progress(done, len(cases))
    if captions == "true":
        found.retrieval = _retrieval(model, embedded, own_captions)
    for kind, test in tests.items():
        summary = summarise(test.overlaps) if test.overlaps else None
        if kind == "zero-shot":
            found.zero_shot = summary
        else:
            found.text_mask = summary
        if test.shares:
            found.sides[kind] = test.sides()
        if test.shifts:
            found.levels[kind] = test.levels()
    return found


def _scenes(store: LabelStore, cases: Sequence[Case], structure: str, model: AmvlmModel) -> Iterator[_Scene]:
    captions, references = store.captions(), store.references()
    judged = {(r.case_id, r.structure): r for r in store.snapshot().revisions}
    for case in cases:
        own = [text for name, text in captions[case.case_id] if name in (structure, None)]
        if not own:
            continue
        volume = store.read_image(case)
        grid = SliceGrid.of(volume, model.image_size)
        stack = grid.stack(volume.array)
        squares = slabs(stack, IntensityScale.of(stack), grid, list(range(grid.count)))
        caption = own[0]
        key = (case.case_id, structure)
        truth = None
        if key in references:
            truth = store.read_reference(case, structure)
        elif key in judged and judged[key].mask_sha256 is not None:
            truth = store.read_mask(judged[key])
        if truth is not None:
            truth = np.ascontiguousarray(np.moveaxis(canonical_mask(truth, volume), grid.axis, 0))
        yield _Scene(case, caption, grid, squares, truth)


def _batches(scenes: Iterator[_Scene]) -> Iterator[list[_Scene]]:
    """Pictures by 32, volumes one by one."""
    kept: list[_Scene] = []
    for scene in scenes:
        kept.append(scene)
        if len(kept) == _BATCH or len(scene.slabs) > 1:
            yield kept
            kept = []
    if kept:
        yield kept


def _embed(model: AmvlmModel, scenes: list[_Scene], device: str) -> list[Tensor]:
    every = model.vlm.embed_image(torch.cat([scene.slabs for scene in scenes]).to(device))
    return list(torch.split(every, [len(scene.slabs) for scene in scenes]))


def _retrieval(model: AmvlmModel, embedded: list[Tensor], captions: list[str]) -> Retrieval:
    """Image → different captions; caption of each pair → images."""
    unique = list(dict.fromkeys(captions))
    with torch.inference_mode():
        texts = model.vlm.embed_text(unique)
        rows = [bag_similarity(e[None], torch.ones(1, len(e), dtype=torch.bool), texts, 0.07)[0] for e in embedded]
    similarity = torch.stack(rows).cpu()
    own = torch.tensor([unique.index(caption) for caption in captions])
    best_texts = similarity.argsort(1, descending=True)
    best_images = similarity.argsort(0, descending=True)
    common = [text for text, _ in Counter(captions).most_common()]
    ranks = torch.tensor([common.index(caption) for caption in captions])
    to_image = [own[best_images[:, text]] == text for text in range(len(unique))]
    return Retrieval(
        pairs=len(captions),
        captions=len(unique),
        image_to_text={k: float((best_texts[:, :k] == own[:, None]).any(1).float().mean()) for k in KS},
        text_to_image={k: float(np.mean([bool(to_image[int(text)][:k].any()) for text in own])) for k in KS},
        majority={k: float((ranks < k).float().mean()) for k in KS},
    )


class _PromptTests:
    """Text masks of one kind: Dice with the own caption, and what a changed word does."""

    def __init__(self, model: AmvlmModel, zero_shot: bool) -> None:
        self._model, self._zero_shot = model, zero_shot
        self.overlaps: list[Overlap] = []
        self.shares: list[float] = []
        self._one_word: list[float] = []
        self._unprompted: list[float] = []
        self._side_dices: list[float] = []
        self._empty = 0
        self.shifts: list[float] = []

    def see(self, scenes: list[_Scene], device: str) -> None:
        own = self._masks(scenes, [scene.caption for scene in scenes], device)
        for scene, mask in zip(scenes, own, strict=True):
            if scene.truth is not None:
                self.overlaps.append(Overlap.of(mask, torch.from_numpy(scene.truth > 0)))
        pictures = [
            (scene, mask) for scene, mask in zip(scenes, own, strict=True)
            if scene.case.planar and scene.truth is not None and scene.truth.any()
        ]  # fmt: skip
        self._see_sides(pictures, device)
        self._see_levels([scene for scene, _ in pictures], device)

    def _see_sides(self, pictures: list[tuple[_Scene, Tensor]], device: str) -> None:
        both = [(s, m) for s, m in pictures if one_sided(s.caption, "left") and _on_both_sides(s)]
        if not both:
            return
        scenes = [scene for scene, _ in both]
        sides: tuple[Side, Side] = ("left", "right")
        for side in sides:
            prompts = [str(one_sided(scene.caption, side)) for scene in scenes]
            low = side == LOW_SIDE
            for scene, mask in zip(scenes, self._masks(scenes, prompts, device), strict=True):
                self._empty += int(not mask.any())
                self.shares.append(_share(mask, low))
                truth = torch.from_numpy(_half(scene, low))
                self._side_dices.append(Overlap.of(mask, truth).dice)
            for mask in self._masks(scenes, [swap_sides(prompt) for prompt in prompts], device):
                self._one_word.append(_share(mask, not low))
        self._unprompted += [_share(mask, True) for _, mask in both]

    def _see_levels(self, scenes: list[_Scene], device: str) -> None:
        chosen = [scene for scene in scenes if one_level(scene.caption, "upper")]
        if not chosen:
            return
        upper, lower = (
            self._masks(chosen, [str(one_level(scene.caption, level)) for scene in chosen], device) for level in _LEVELS
        )
        for high, low in zip(upper, lower, strict=True):
            self.shifts.append(_height(high) - _height(low))  # the canonical second axis of a picture points up

    def _masks(self, scenes: list[_Scene], prompts: list[str], device: str) -> list[Tensor]:
        """Boolean masks on each case's canonical grid, slices first."""
        counts = [len(scene.slabs) for scene in scenes]
        image = torch.cat([scene.slabs for scene in scenes]).to(device)
        vlm = self._model.vlm
        text = vlm.embed_text(prompts) if self._zero_shot else vlm.embed_prompt(prompts)
        text = text.repeat_interleave(torch.tensor(counts, device=text.device), 0)
        if self._zero_shot:
            maps = torch.split(patch_similarity(vlm, image, text).cpu(), counts)
            return [otsu_mask(scene.back(each)) for scene, each in zip(scenes, maps, strict=True)]
        logits = torch.split(self._model.generator(image, text[:, None])[:, 0].float().cpu(), counts)
        return [scene.back(each) > 0 for scene, each in zip(scenes, logits, strict=True)]

    def sides(self) -> Sides:
        dices = [dice for dice in self._side_dices if not math.isnan(dice)]
        lopsided = [max(share, 1 - share) for share in self._unprompted]
        return Sides(
            len(self._unprompted), float(np.mean(self.shares)), float(np.mean(self._one_word)),
            float(np.mean(lopsided)), float(np.mean(dices)), self._empty,
        )  # fmt: skip

    def levels(self) -> Levels:
        shifts = np.array(self.shifts)
        some = shifts[~np.isnan(shifts)]
        shift = float(some.mean()) if len(some) else math.nan
        return Levels(len(shifts), float((shifts > 0).mean()), shift, len(shifts) - len(some))


def _on_both_sides(scene: _Scene) -> bool:
    return bool(_half(scene, True).any() and _half(scene, False).any())


def _half(scene: _Scene, low: bool) -> NDArray[np.bool_]:
    """The connected parts of a picture's expert mask whose centre lies in one half of the first axis."""
    if scene.truth is None:
        raise ValueError("this case has no expert mask")
    return half(scene.truth[0], low)[None]


def _share(mask: Tensor, low: bool) -> float:
    """Share of a mask (1, X, Y) in one half of the first axis; 0 when empty."""
    columns = mask.float().sum((0, 2))
    middle = len(columns) // 2
    part = columns[:middle].sum() if low else columns[len(columns) - middle :].sum()
    return float(part / columns.sum().clamp(min=1))


def _height(mask: Tensor) -> float:
    """Centre of a mask along the second axis, in [0, 1]; NaN when empty."""
    rows = mask.float().sum((0, 1))
    return float((rows * torch.arange(len(rows))).sum() / rows.sum() / len(rows)) if rows.any() else math.nan
