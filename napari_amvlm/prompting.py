"""Prompts: from the person's words to masks on the open scan."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_amvlm.engine import ModelEntry, OpenCase, PromptBegan, PromptEnded
from napari_amvlm.jobs import PROMPT, Job
from napari_amvlm.layers import PREDICTION, TEXT_MASK, CaseLayers, level

if TYPE_CHECKING:
    from amvlm.inference.session import SliceResult
    from amvlm.store import LabelStore
    from napari_amvlm.controller import Controller

    PromptEvent = PromptBegan | SliceResult | PromptEnded

MOST_CAPTIONS = 2000


@dataclass
class _Run:
    """A prompt on its way: what was typed, how it began and how it ended. Written in the worker."""

    prompt: str
    text: str
    began: PromptBegan | None = None
    ended: PromptEnded = field(default_factory=lambda: PromptEnded(""))

    @property
    def axis(self) -> int:
        return self.began.axis if self.began is not None else 2

    def follow(self, event: PromptEvent) -> None:
        """Note how it began or ended."""
        if isinstance(event, PromptBegan):
            self.began = event
        elif isinstance(event, PromptEnded):
            self.ended = event


class Prompting:
    """Runs prompts and shows their results as they arrive, the slice on screen first."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._workspace = controller.workspace
        self._workspace.models_listed.connect(controller.slot(self.show_models))
        self._mentioned: set[str] = set()
        self._complete: set[Path] = set()
        self._cutting: Job | None = None
        self._captions: tuple[LabelStore | None, list[str]] = (None, [])

    def list_models(self) -> None:
        """Ask the worker which models there are."""
        controller, store = self._controller, self._controller.store

        def show(found: tuple[list[ModelEntry], list[str]]) -> None:
            models, refused = found
            if controller.store is store:
                self._workspace.list_models(models)
            for sentence in refused:
                if sentence not in self._mentioned:
                    self._mentioned.add(sentence)
                    controller.warn(sentence)

        def failed(text: str) -> None:
            controller.fail(text, once=True)

        controller.worker.submit(Job(lambda: controller.engine.models(store), on_result=show, on_error=failed))

    def show_models(self) -> None:
        """The models there are, and the chosen one."""
        panel, model = self._controller.panel, self._workspace.model
        if panel is not None:
            rows = [(each.name, ", ".join(each.known) or "no structure yet") for each in self._workspace.models]
            panel.show_models(rows, model.name if model else "")
        self._controller.overview.show_state()

    def run_again(self) -> None:
        """The prompt that was run last for the chosen structure, on another case."""
        if prompt := self._workspace.prompt_of(self._workspace.structure):
            self.run(prompt)

    def run(self, text: str) -> None:
        """Run one prompt per line."""
        controller = self._controller
        layers, model = controller.layers, self._workspace.model
        if layers is None:
            controller.notice("Open a scan first.", True)
        elif not layers.present():
            controller.judging.offer_layers()
        elif model is None:
            controller.notice(
                "There is no model yet. Make one with: amvlm pretrain STUDY, then amvlm train STUDY", True
            )
        elif controller.judging.saving:
            controller.notice("Wait until the label is saved.")
        elif model.folder not in self._complete:
            self._see_weights(model, text, layers.opened)
        else:
            lines = [line for line in text.splitlines() if line.strip()] or [text]
            controller.withdraw_offer()
            controller.structures.choose_named_in(lines[-1])  # first: it ends what runs for the structure before
            for line in lines[:-1]:
                self._run_aside(line, layers, model)
            self._run_line(lines[-1], layers, model, text)

    def _see_weights(self, model: ModelEntry, prompt: str, opened: OpenCase) -> None:
        """Run a prompt once everything that the model needs is on this machine; ask before anything is downloaded."""

        def go_on() -> None:
            self._complete.add(model.folder)
            self.run(prompt)

        look = partial(self._controller.engine.missing_weights, model.folder)
        self._controller.with_weights(
            look, go_on, title="Download the text encoder?", text="Looking at the model …", owner=opened
        )

    def cancel(self) -> None:
        """End the jobs of the open scan; what is on screen stays."""
        controller = self._controller
        if controller.layers is not None and controller.worker.cancel_owned_by(controller.layers.opened):
            self._workspace.stop_waiting()

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
        run = _Run(prompt, prompt)

        def work() -> Iterator[PromptEvent]:
            for event in controller.engine.segment(model.folder, opened.volume, prompt, visible):
                run.follow(event)
                if not isinstance(event, PromptBegan | PromptEnded):
                    np.moveaxis(kept, run.axis, 0)[list(event.indices)] = event.merged >= level(layers.threshold)
                yield event

        def ended(whole: bool) -> None:
            if (
                whole
                and run.ended.trusted
                and controller.layers is layers
                and layers.present()
                and controller.label.keep_draft_of(name, kept)
            ):
                layers.keep_as_other(name, kept)
                controller.draw_outlines()

        controller.worker.submit(Job(work, owner=opened, kind=PROMPT, on_end=ended, on_error=controller.fail))

    def _run_line(self, prompt: str, layers: CaseLayers, model: ModelEntry, text: str) -> None:
        controller, opened = self._controller, layers.opened
        visible = tuple(self.visible_slice(axis) for axis in range(3))
        clock, run = time.monotonic(), _Run(prompt, text)

        def arrived(event: PromptEvent) -> None:
            if controller.layers is layers and layers.present():  # else a late result, which lands nowhere
                self._show(event, layers, clock, job)

        def ended(whole: bool) -> None:
            self._workspace.end(job)
            if controller.layers is not layers:
                return
            if whole and layers.present() and run.began is not None:
                self._settle(run, run.began, layers)
            controller.label.measure_soon()

        def failed(sentence: str) -> None:
            self._workspace.end(job)
            controller.fail(sentence)

        def work() -> Iterator[PromptEvent]:
            for event in controller.engine.segment(model.folder, opened.volume, prompt, visible):
                run.follow(event)
                if isinstance(event, PromptBegan):
                    layers.predicts = event.predicts
                elif not isinstance(event, PromptEnded) and not job.cancelled.is_set():
                    masks = {TEXT_MASK: event.text_mask, PREDICTION: event.prediction, "merged": event.merged}
                    layers.write_slices(run.axis, event.indices, masks)
                yield event

        job = Job(work, owner=opened, kind=PROMPT, on_result=arrived, on_end=ended, on_error=failed)
        self._workspace.begin("Loading the model …", job)
        controller.worker.submit(job)

    def _show(self, event: PromptEvent, layers: CaseLayers, began: float, job: Job) -> None:
        """What a running prompt has found so far."""
        if isinstance(event, PromptBegan):
            if event.warnings:
                self._controller.notice(" ".join(event.warnings), True)
        elif not isinstance(event, PromptEnded):
            layers.refresh()
            left = (time.monotonic() - began) / event.done * (event.total - event.done)
            words = f"{event.done} of {event.total} slices, {left:.0f} s left"
            self._workspace.go_on(event.done, event.total, words, job)

    def _settle(self, run: _Run, began: PromptBegan, layers: CaseLayers) -> None:
        """A prompt ran to its end: the label takes its mask, if it belongs to the structure and can be trusted."""
        controller, trusted = self._controller, run.ended.trusted
        belongs, anything = self._belongs(run.prompt), layers.fullest_slice(began.axis) is not None
        layers.was_prompted = True

        def follow() -> None:
            controller.label.prompted(run.prompt, began.fingerprint, began.predicts)
            controller.overview.show_state()

        if belongs and (anything or trusted):
            self._workspace.prompted(controller.structure, run.text)
        if belongs and trusted:
            follow()
        elif belongs and anything and not controller.label.touched:
            controller.offer("Your label was left as it was.", "Start from it anyway",
                             "Put the doubtful mask into your label (can be undone)", follow)  # fmt: skip
        if anything:
            controller.viewing.compare()
        controller.overview.show_state()
        self._show_where_found(run, began, layers)

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
        self._workspace.set_threshold(threshold)
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

    def _show_where_found(self, run: _Run, began: PromptBegan, layers: CaseLayers) -> None:
        """Say plainly when nothing was found; go to the largest slice when this one is empty."""
        warnings = [*began.warnings, *filter(None, [run.ended.doubt])]
        fullest = layers.fullest_slice(began.axis)
        if fullest is None:
            if run.ended.trusted:  # else the words were not understood, and that was said
                nothing = f"The model finds no “{run.prompt[:60]}” here."
                warnings.append(f"{nothing} If you see it, paint it; if it is not there, press N.")
        elif layers.is_empty_at(began.axis, self.visible_slice(began.axis)):
            shown = layers.opened.ras.shape[began.axis] - 1 - fullest
            self._controller.viewer.dims.set_current_step(2 - began.axis, shown)
        if warnings:
            self._controller.notice(" ".join(warnings), True)
