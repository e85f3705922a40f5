"""One volume and one model: embed once, prompt often.

The image features of a slice know no text, so they are computed once and kept; a further prompt costs the text
encoder and a product, or on a plan's grid the decoder. Results are on the volume's canonical (RAS) grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from amvlm.imaging import Volume
from amvlm.imaging.orientation import to_canonical
from amvlm.imaging.regrid import back_on_slices
from amvlm.imaging.resample import IntensityScale, SliceGrid
from amvlm.inference.planned_reader import PlannedReader
from amvlm.inference.text_readers import PlannedTextReader, Slices, SquareTextReader
from amvlm.losses import merged_logits
from amvlm.models import AmvlmModel, KnownStructure
from amvlm.models.planned import PlannedStudent
from amvlm.models.planned_text import PlannedFilmUNet
from amvlm.models.quality import QualityFeatures, foretold
from amvlm.text import checked_prompt

BATCH = 16
_DOUBTFUL = 0.5


@dataclass(frozen=True)
class SliceResult:
    """Masks of a few slices as probabilities in steps of 1/255.

    Parameters
    ----------
    indices : list of int
        Slice numbers along ``Session.axis`` of the canonical volume.
    text_mask, prediction, merged : ndarray, uint8, (len(indices), rows, columns)
        255 is certain. For a structure that the student does not know ``prediction`` is all 0 and ``merged`` is the
        text mask; :meth:`Session.prediction_of` tells.
    done, total : int
        Slices finished so far, of how many.
    """

    indices: list[int]
    text_mask: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    merged: NDArray[np.uint8]
    done: int
    total: int


class Session:
    """Keeps a volume's features for one model.

    Parameters
    ----------
    model : AmvlmModel
    volume : Volume
    device : torch.device or str
    accurate : bool
        Average a planned student's answers over turned copies, see :func:`amvlm.models.planned.views_of`.
    """

    def __init__(
        self, model: AmvlmModel, volume: Volume, device: torch.device | str = "cpu", accurate: bool = False
    ) -> None:
        self.model = model.to(device).eval()
        self.volume = volume
        self._device = torch.device(device)
        self._reader: PlannedReader | None = None
        if isinstance(model.student, PlannedStudent):
            self._reader = PlannedReader(model.student, volume, self._device, accurate)
        self._tidied: list[int] = []
        self._grid = SliceGrid.of(volume, model.image_size, None if model.plan is None else model.plan.axis)
        stack = self._grid.stack(volume.array)
        self._slices = Slices(self._grid, stack, IntensityScale.of(stack))
        self._text_reader: SquareTextReader | PlannedTextReader
        if isinstance(model.generator, PlannedFilmUNet) and self._reader is not None:
            self._text_reader = PlannedTextReader(model, self._slices, self._reader, self._device)
        else:
            self._text_reader = SquareTextReader(model, self._slices, self._device)
        self._student: Tensor | None = None
        self._embedded = torch.zeros(self.slices, dtype=torch.bool)
        self._texts: dict[str, Tensor] = {}
        self._areas = torch.zeros(self.slices)

    @property
    def slices(self) -> int:
        """How many slices the volume has along :attr:`axis`."""
        return int(self._slices.stack.shape[0])

    @property
    def axis(self) -> int:
        """The canonical axis across which the model slices (2 is axial)."""
        return self._grid.axis

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the canonical grid, on which results lie."""
        return to_canonical(self.volume).shape

    def warnings(self, prompt: str) -> list[str]:
        """What a person should know before running: words that are not understood, modality, sides."""
        card = self.model.card
        prompt = checked_prompt(prompt)
        found = list(filter(None, [self.unread(prompt)]))
        if card.modality and self.volume.modality and card.modality != self.volume.modality:
            found.append(f"This model was trained on {card.modality}; the scan is {self.volume.modality}.")
        if card.planar != self.volume.planar:
            kinds = ("volumes", "2-D pictures")
            found.append(
                f"This model was trained on {kinds[card.planar]}; this is one of the {kinds[not card.planar]}."
            )
        if not self.volume.sides_known:
            found.append("The file does not say which side is the patient's left: check sides yourself.")
        return found

    def unread(self, prompt: str) -> str:
        """What the model does not understand of a prompt, also where it was trained on reports; or ""."""
        card = self.model.card
        if not card.free_captions:
            if card.structure_of(prompt) is not None:
                return ""
            return (
                f"This model knows {card.known_names()}. Outline “{prompt}” in a few scans, then Train; "
                "until then its text mask is a guess."
            )
        if card.words:
            return card.read(prompt).refusal
        if card.structure_of(prompt) is not None:
            return ""
        return f"This model was trained on reports and keeps none of their words: a mask of “{prompt}” is a guess."

    def doubts(self, prompt: str) -> str:
        """What speaks against the masks of the prompt that ran last: the target may be absent, or the words unread.

        Returns
        -------
        str
            A sentence, or "". Of a structure that the student predicts: a text mask that is empty beside a prediction
            that is not, or an expected Dice below 0.5, where at least five cases tell it. Of one that the model was not
            taught: a text mask that, on up to 16 slices with the largest masks, is the same as under an empty caption
            (Dice ≥ 0.95).
        """
        card, name = self.model.card, checked_prompt(prompt)
        structure = self.prediction_of(prompt)
        if structure is not None:
            signs = self.signs(prompt)
            if not self._areas.any() and signs is not None and signs.agreement == 0 and self._predicts_any(structure):
                return (
                    f"The text finds no “{name}” in this scan, although the prediction outlines something. "
                    "Compare the two."
                )
            expected = None if signs is None else foretold(structure.expected_dice, signs)
            if expected is not None and expected < _DOUBTFUL and self._areas.any():
                return (
                    f"The mask of “{name}” is probably poor (expected Dice {expected:.2f}). "
                    "Check it in every slice."
                )
            return ""
        if card.structure_of(name) is not None or not self._areas.any():
            return ""
        largest = self._areas.argsort(descending=True)[:BATCH].tolist()
        with_words, without = (
            self._masks(largest, self._text(words), None)[0] > 127
            for words in (name, "")
        )
        total = int(with_words.sum() + without.sum())
        if 2 * int((with_words & without).sum()) < 0.95 * total:
            return ""
        return (
            f"The words “{name}” make no difference to this model: it outlines the same without them. "
            "Do not trust this mask."
        )

    def _predicts_any(self, structure: KnownStructure) -> bool:
        column = self.model.card.structures.index(structure)
        return self._student is not None and bool((self._student[:, column] > 0).any())

    def prediction_of(self, prompt: str) -> KnownStructure | None:
        """The structure that the student predicts for a prompt; None where it knows none, or there is no student."""
        return self.model.card.structure_of(checked_prompt(prompt)) if self.model.student is not None else None

    def order(self, visible: int) -> list[int]:
        """All slices, the visible one first, then outward."""
        return sorted(range(self.slices), key=lambda z: (abs(z - visible), z))

    def embed(self, visible: int = 0) -> Iterator[int]:
        """Compute what is missing, the visible slice first; yields how many slices are ready."""
        missing = [z for z in self.order(visible) if not self._embedded[z]]
        for batch in _batches(missing):
            self._embed(batch)
            yield int(self._embedded.sum())

    def segment(self, prompt: str, visible: int | None = None) -> Iterator[SliceResult]:
        """Masks for a prompt, in the patient's own sides; embeds on the way what is not embedded yet.

        Parameters
        ----------
        prompt : str
        visible : int, optional
            The slice to begin with; the middle one by default.

        Raises
        ------
        UserError
            If the prompt is empty or too long.
        """
        structure = self.prediction_of(prompt)
        text = self._text(checked_prompt(prompt))
        order = self.order(self.slices // 2 if visible is None else min(max(visible, 0), self.slices - 1))
        done, whole = 0, bool(self._embedded.all())
        for batch in _batches(order, self._at_once()):
            missing = [z for z in batch if not self._embedded[z]]
            if missing:
                self._embed(missing)
            text_mask, prediction, merged = self._masks(batch, text, structure)
            self._areas[batch] = torch.from_numpy((text_mask > 127).sum((1, 2), dtype=np.float32))
            done += len(batch)
            yield SliceResult(batch, text_mask, prediction, merged, done, self.slices)
        if structure is not None and not whole and self._tidied:  # smaller parts, known once all slices are there
            for batch in _batches(self._tidied, self._at_once()):
                yield SliceResult(batch, *self._masks(batch, text, structure), self.slices, self.slices)

    def nothing(self) -> SliceResult:
        """Empty masks of all slices: the answer to a prompt that was not understood."""
        empty = np.zeros(self._slices.stack.shape[:3], np.uint8)
        return SliceResult(list(range(self.slices)), empty, empty, empty, self.slices, self.slices)

    def segment_volume(self, prompt: str) -> dict[str, NDArray[np.uint8]]:
        """All slices at once: "text mask", "prediction" and "merged" as uint8 probabilities on the canonical grid."""
        found = {name: np.zeros(self.shape, np.uint8) for name in ("text mask", "prediction", "merged")}
        views = {name: np.moveaxis(array, self.axis, 0) for name, array in found.items()}
        for result in self.segment(prompt):
            views["text mask"][result.indices] = result.text_mask
            views["prediction"][result.indices] = result.prediction
            views["merged"][result.indices] = result.merged
        return found

    def _at_once(self) -> int:
        """Slices of a batch: few while they are embedded, later as many as hold about eight million voxels."""
        if not self._embedded.all():
            return BATCH
        return max(BATCH, 2**23 // max(1, int(self._slices.stack[0].size)))

    @torch.inference_mode()
    def _text(self, prompt: str) -> Tensor:
        """What the generator reads of a prompt, (D + width,)."""
        if prompt not in self._texts:
            self._texts[prompt] = self.model.vlm.embed_prompt([prompt])[0]
        return self._texts[prompt]

    @torch.inference_mode()
    def _embed(self, indices: list[int]) -> None:
        if isinstance(self._text_reader, PlannedTextReader):
            self._text_reader.prepare(indices)
            student = None if self._reader is None else self._reader.slices(indices)
        else:
            image = self._slices.slabs(indices).to(self._device)
            self._text_reader.prepare(indices, image)
            student = self._predict(image, indices)
        if self._student is None:
            self._student = (
                self._volume_logits() if student is None else student.new_empty(self.slices, *student.shape[1:])
            )
        if student is not None:
            self._student[indices] = student
        self._embedded[indices] = True
        if self._reader is not None and bool(self._embedded.all()):
            self._tidied = self._reader.tidy(self._student)

    def _predict(self, image: Tensor, indices: list[int]) -> Tensor | None:
        """The student's logits of some slices; no channel without one, None where it reads the volume as a whole."""
        student = self.model.student
        if student is None:
            return image[:, :0]
        if isinstance(student, PlannedStudent):
            return None if self._reader is None else self._reader.slices(indices)
        return student(image).float() if student.settings.dimensions == 2 else None

    def _volume_logits(self) -> Tensor:
        """A 3-D student's logits of all slices, (Z, S, H, W): blocks overlap, so they are made at once."""
        if self._reader is not None:
            return self._reader.everything(self.slices)
        if self.model.student is None or isinstance(self.model.student, PlannedStudent):
            raise ValueError("there is no student")
        squares = []
        for begin in range(0, self.slices, BATCH):
            part = self._slices.scale.apply(self._slices.stack[begin : begin + BATCH])
            squares.append(self._grid.to_square(torch.from_numpy(part)[:, None])[:, 0])
        return self.model.student.volume_logits(torch.cat(squares).to(self._device)).movedim(1, 0)

    @torch.inference_mode()
    def signs(self, prompt: str) -> QualityFeatures | None:
        """What can be seen of the merged mask's quality; None for a structure that the student does not know."""
        structure = self.prediction_of(prompt)
        if structure is None:
            return None
        for _ in self.embed():
            pass
        if self._student is None:
            raise ValueError("the slices are not embedded")
        text_logits = self._text_logits(list(range(self.slices)), self._text(checked_prompt(prompt)), True)[:, 0]
        column = self.model.card.structures.index(structure)
        return QualityFeatures.of(self._student[:, column].float(), text_logits.float(), structure.text_weight)

    @torch.inference_mode()
    def image_embedding(self, slices: int = 4) -> NDArray[np.float32]:
        """Mean of the global image embeddings of evenly spread slices, (D,), L2-normalised."""
        places = sorted({int(z) for z in np.linspace(0, self.slices - 1, slices + 2).round()[1:-1]})
        image = self._slices.slabs(places).to(self._device)
        mean = F.normalize(self.model.vlm.embed_image(image).mean(0), dim=0)
        return mean.float().cpu().numpy()

    @torch.inference_mode()
    def _masks(
        self, indices: list[int], text: Tensor, structure: KnownStructure | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        if self._student is None:
            raise ValueError("the slices are not embedded")
        text_logits = self._text_logits(indices, text, structure is not None)
        if structure is None:
            text_mask = self._on_grid(text_logits)
            return text_mask, np.zeros_like(text_mask), text_mask
        column = self.model.card.structures.index(structure)
        whole = len(indices) == self.slices and indices == sorted(indices)
        prediction_logits = self._student[slice(None) if whole else torch.tensor(indices), column : column + 1]
        if structure.text_weight in (0.0, 1.0):  # the merged mask is one of the two
            both = self._on_grid(torch.cat([text_logits, prediction_logits], 1), channels=2)
            return both[:, 0], both[:, 1], both[:, 1 - int(structure.text_weight)]
        merged = merged_logits(prediction_logits, text_logits, structure.text_weight)
        together = self._on_grid(torch.cat([text_logits, prediction_logits, merged], 1), channels=3)
        return together[:, 0], together[:, 1], together[:, 2]

    def _text_logits(self, indices: list[int], text: Tensor, known: bool) -> Tensor:
        """Logits (len(indices), 1, h, w) on the grid that the prediction lies on."""
        if isinstance(self._text_reader, PlannedTextReader):
            return self._text_reader.logits(indices, text, known)
        plane = None
        if self.model.plan is not None and self._student is not None:  # both masks lie on the plan's grid
            plane = (self._student.shape[2], self._student.shape[3])
        return self._text_reader.logits(indices, text, plane)

    def _on_grid(self, logits: Tensor, channels: int = 1) -> NDArray[np.uint8]:
        """Logits on the square → probabilities in 1/255 on the slice's own pixels; the one sigmoid of each mask."""
        on_plan = self.model.plan is not None
        fitted = back_on_slices(logits, self._grid.plane).clone() if on_plan else self._grid.from_square(logits)
        probs = fitted.sigmoid_()
        quantised = probs.mul_(255).round_().to(torch.uint8).cpu().numpy()
        found: NDArray[np.uint8] = quantised if channels > 1 else quantised[:, 0]
        return found


def _batches(indices: list[int], at_once: int = BATCH) -> Iterator[list[int]]:
    """The first slice alone, so that something is seen at once; then batches; all together where they fit in one."""
    if len(indices) <= at_once and at_once > BATCH:
        yield sorted(indices)
        return
    if indices:
        yield indices[:1]
    for begin in range(1, len(indices), at_once):
        yield indices[begin : begin + at_once]
