"""Prompts: from the person's words to masks on the open scan."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_amvlm.engine import Guard, ModelEntry
from napari_amvlm.jobs import Job
from napari_amvlm.layers import PREDICTION, TEXT_MASK, CaseLayers, level

if TYPE_CHECKING:
    from amvlm.store import LabelStore
    from napari_amvlm.controller import Controller

KIND = "prompt"
MOST_CAPTIONS = 2000


class Prompting:
    """Runs prompts and shows their results as they arrive, the slice on screen first."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.models: list[ModelEntry] = []
        self.model: ModelEntry | None = None
        self._mentioned: set[str] = set()
        self._cutting: Job | None = None
        self._captions: tuple[LabelStore | None, list[str]] = (None, [])

    def list_models(self) -> None:
        """Ask the worker which models there are; the chosen one stays, else the newest trained one."""
        controller, store = self._controller, self._controller.store

        def show(found: tuple[list[ModelEntry], list[str]]) -> None:
            models, refused = found
            chosen = self.model.name if self.model else ""
            newest = next((m for m in models if m.kind == "trained"), models[0] if models else None)
            self.models = models
            self.model = next((m for m in models if m.name == chosen), newest)
            if controller.panel is not None:
                rows = [(m.name, ", ".join(m.known) or "no structure yet") for m in models]
                controller.panel.show_models(rows, self.model.name if self.model else "")
            for sentence in refused:
                if sentence not in self._mentioned:
                    self._mentioned.add(sentence)
                    controller.warn(sentence)

        def failed(text: str) -> None:
            controller.fail(text, once=True)

        controller.worker.submit(Job(lambda: controller.engine.models(store), on_result=show, on_error=failed))

    def choose_model(self, name: str) -> None:
        self.model = next((m for m in self.models if m.name == name), self.model)

    def run(self, text: str) -> None:
        """Run one prompt per line."""
        controller = self._controller
        layers, model = controller.layers, self.model
        if layers is None:
            controller.notice("Open a scan first.", True)
        elif not layers.present():
            controller.notice("Layers of this scan were removed. Open it again to go on.", True)
        elif model is None:
            controller.notice(
                "There is no model yet. Make one with: amvlm pretrain STUDY, then amvlm train STUDY", True
            )
        elif controller.judging.saving:
            controller.notice("Wait until the label is saved.")
        else:
            lines = [line for line in text.splitlines() if line.strip()] or [text]
            controller.structures.choose_named_in(lines[-1])  # first: it ends what runs for the structure before
            for line in lines[:-1]:
                self._run_aside(line, layers, model)
            self._run_line(lines[-1], layers, model)

    def cancel(self) -> None:
        """End the jobs of the open scan; what is on screen stays."""
        controller = self._controller
        if controller.layers is not None:
            controller.worker.cancel_owned_by(controller.layers.opened)
        if controller.panel is not None:
            controller.panel.show_idle()

    def visible_slice(self, axis: int) -> int:
        """The canonical index of the slice on screen, along a canonical axis."""
        layers = self._controller.layers
        if layers is None:
            return 0
        shown = int(self._controller.viewer.dims.current_step[2 - axis])
        return int(layers.opened.ras.shape[axis]) - 1 - shown

    def _run_aside(self, prompt: str, layers: CaseLayers, model: ModelEntry) -> None:
        """A prompt of several: its merged mask becomes an outline, and a draft of its own structure in a study."""
        controller, opened = self._controller, layers.opened
        if not (name := controller.structures.of_line(prompt)):
            return
        visible = tuple(self.visible_slice(axis) for axis in range(3))
        kept = np.zeros(opened.ras.shape[:3], np.uint8, order="F")
        guards: list[Guard] = []

        def work() -> Iterator[Any]:
            axis = 2
            for result in controller.engine.segment(model.folder, opened.volume, prompt, visible):
                if isinstance(result, tuple):
                    axis = result[1]
                elif isinstance(result, Guard):
                    guards.append(result)
                else:
                    np.moveaxis(kept, axis, 0)[list(result.indices)] = result.merged >= level(layers.threshold)
                yield result

        def ended(whole: bool) -> None:
            if (
                whole
                and all(guard.trusted for guard in guards)
                and controller.layers is layers
                and layers.present()
                and controller.label.keep_draft_of(name, kept)
            ):
                layers.keep_as_other(name, kept)
                controller.draw_outlines()

        controller.worker.submit(Job(work, owner=opened, kind=KIND, on_end=ended, on_error=controller.fail))

    def _run_line(self, prompt: str, layers: CaseLayers, model: ModelEntry) -> None:
        controller, opened = self._controller, layers.opened
        visible = tuple(self.visible_slice(axis) for axis in range(3))
        began = time.monotonic()
        head: dict[str, Any] = {}

        def arrived(result: Any) -> None:
            if controller.layers is not layers or not layers.present():
                return  # the person went on to another scan: a late result lands nowhere
            if isinstance(result, tuple):
                head["warnings"], head["axis"], head["predicts"], head["fingerprint"] = result
                controller.notice(" ".join(head["warnings"]), bool(head["warnings"]))
                return
            if isinstance(result, Guard):
                head["guard"], head["trusted"] = result.sentence, result.trusted
                return
            layers.refresh()
            if controller.panel is not None:
                left = (time.monotonic() - began) / result.done * (result.total - result.done)
                text = f"{result.done} of {result.total} slices, {left:.0f} s left"
                controller.panel.show_progress(result.done, result.total, text)

        def ended(whole: bool) -> None:
            if controller.layers is not layers:
                return
            if controller.panel is not None:
                controller.panel.show_idle()
            if whole and layers.present() and head:
                follow = self._belongs(prompt) and bool(head.get("trusted", True))
                controller.label.prompted(prompt, str(head["fingerprint"]), bool(head["predicts"]), follow)
                self._show_where_found(prompt, head["axis"], [*head["warnings"], *filter(None, [head.get("guard")])])
            controller.label.measure_soon()

        if controller.panel is not None:
            controller.panel.show_progress(0, 0, "Loading the model …")

        def work() -> Iterator[Any]:
            axis = 2
            for result in controller.engine.segment(model.folder, opened.volume, prompt, visible):
                if isinstance(result, tuple):
                    axis, layers.predicts = result[1], result[2]
                elif not isinstance(result, Guard) and not job.cancelled.is_set():
                    found = {TEXT_MASK: result.text_mask, PREDICTION: result.prediction, "merged": result.merged}
                    layers.write_slices(axis, result.indices, found)
                yield result

        job = Job(work, owner=opened, kind=KIND, on_result=arrived, on_end=ended, on_error=controller.fail)
        controller.worker.submit(job)

    def _belongs(self, prompt: str) -> bool:
        """False for words that name no structure of the study: their mask must not become another structure's label."""
        controller = self._controller
        if controller.store is None or controller.structures.named_in(prompt):
            return True
        name = " ".join(prompt.split())[:60]
        controller.offer(
            f"“{name}” names no structure of this study, so your label was left alone.", "Add it",
            "Make a structure of this name; its label starts from this prompt", lambda: self._add_and_run(name, prompt),
        )  # fmt: skip
        return False

    def _add_and_run(self, name: str, prompt: str) -> None:
        self._controller.structures.add(name)
        self.run(prompt)

    def apply_threshold(self, threshold: float) -> None:
        """The slice on screen at once, the rest in the worker; your label is not touched."""
        controller, layers = self._controller, self._controller.layers
        if layers is None or not layers.present():
            return
        axis = 2 - int(controller.viewer.dims.order[0])
        layers.threshold = threshold
        layers.apply_threshold(axis, [self.visible_slice(axis)])
        layers.refresh()
        if self._cutting is not None:
            self._cutting.cancel()
        self._cutting = controller.worker.submit(
            Job(
                layers.threshold_everywhere, owner=layers.opened,
                on_end=lambda whole: self._threshold_settled(layers) if whole else None,
            )
        )  # fmt: skip

    def _threshold_settled(self, layers: CaseLayers) -> None:
        if self._controller.layers is layers and layers.present():
            layers.refresh()
            self._controller.label.measure_soon()

    def offer_completions(self) -> None:
        """Wordings to complete: structures, prompts used for them, and the study's captions, in the patient's sides."""
        controller = self._controller
        store, panel = controller.store, controller.panel
        if store is None or panel is None:
            return
        if self._captions[0] is not store:  # they never change while a study is open, and may be thousands
            texts = [text for of_case in store.captions().values() for _, text in of_case]
            distinct = list(dict.fromkeys(texts))[:MOST_CAPTIONS]
            self._captions = store, distinct
        named = [text for structure in store.structures() for text in (structure.name, *structure.prompts)]
        panel.prompt.offer(list(dict.fromkeys((*named, *self._captions[1]))))

    def _show_where_found(self, prompt: str, axis: int, warnings: list[str]) -> None:
        """Say plainly when nothing was found; go to the largest slice when this one is empty."""
        layers = self._controller.layers
        if layers is None:
            return
        fullest = layers.fullest_slice(axis)
        if fullest is None:
            nothing = f"The text finds no “{prompt[:60]}” here."
            warnings = [*warnings, f"{nothing} Lower the threshold, try other words, or choose Absent."]
        elif layers.is_empty_at(axis, self.visible_slice(axis)):
            shown = layers.opened.ras.shape[axis] - 1 - fullest
            self._controller.viewer.dims.set_current_step(2 - axis, shown)
        if warnings:
            self._controller.notice(" ".join(warnings), True)
