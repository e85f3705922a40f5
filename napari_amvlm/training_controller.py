"""The Train panel's side of the controller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject

from amvlm.config import TrainSettings
from amvlm.errors import UserError
from amvlm.events import Failed, Finished, Note, Progress, Started, Validation
from amvlm.store import LabelStore
from napari_amvlm.forms import form_values, settings_form
from napari_amvlm.jobs import Job
from napari_amvlm.plan_preview import PlanPreview, Preview
from napari_amvlm.training_account import (
    clock_time,
    comparison,
    count_labels,
    kind_name,
    model_name,
    time_left,
    unchanged_validation_labels,
    verdict,
)
from napari_amvlm.training_run import TrainingRun
from napari_amvlm.wording import printable, sentence

if TYPE_CHECKING:
    from napari_amvlm.controller import Controller
    from napari_amvlm.panels.train import TrainPanel

FIELDS = ("steps", "mode", "device", "seed")
_BY_STEPS = "By steps: slices are scaled to the square of the model's image encoder, as in the paper."
WAITED = "waiting for data"


class TrainingController(QObject):
    """Counts, starts, follows and stops; offers the new model."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self._controller = controller
        self.panel: TrainPanel | None = None
        self.current: TrainingRun | None = None
        self._form: Any = None
        self._before: Validation | None = None
        self._after: Validation | None = None
        self.new_model = self.old_model = ""
        self._failed = False
        self._minutes = 0.0
        self._can_start = False
        self.preview = PlanPreview(self)
        self.preview.changed.connect(controller.slot(self._show_plan))
        self._validated = 0

    @property
    def _store(self) -> LabelStore | None:
        return self._controller.store

    def attach(self, panel: TrainPanel) -> None:
        self.panel = panel
        self._form = settings_form(TrainSettings, FIELDS)
        panel.set_form(self._form.native)
        wires = (
            (panel.start_requested, self.start),
            (panel.stop_requested, self.stop),
            (panel.resume_requested, self.resume),
            (panel.use_model_requested, self.use_new_model),
            (panel.old_model_requested, self.use_old_model),
            (panel.minutes_changed, self._show_plan),
            (panel.shown, self._measure),
        )
        for signal, method in wires:
            signal.connect(self._controller.slot(method))
        for name in ("steps", "mode"):
            self._form[name].changed.connect(self._controller.slot(lambda _: self._show_plan()))
        self._controller.workspace.models_listed.connect(self._suggest_name)
        self._suggest_name()
        self.study_changed()

    def detach(self, panel: object) -> None:
        """The panel was closed; a run is followed all the same."""
        if self.panel is panel:
            self.panel = None

    def study_changed(self) -> None:
        """Another study is open: find the run that may be going on in it."""
        if self.current is not None:
            self.current.forget()
            self.current = None
        self.preview.forget()
        if self._store is None:
            if self.panel is not None:
                self.panel.show_no_study()
            return
        found = TrainingRun.find(self._store, self)
        if found is not None:
            self._follow(found)
        self.labels_changed()

    def labels_changed(self) -> None:
        """Count again what there is to learn from."""
        self._controller.guard(self._count, once=True)

    def _count(self) -> None:
        if self.panel is None or self._store is None:
            return
        counts, rows = count_labels(self._store)
        self.panel.show_counts(*counts, rows)
        self._can_start = counts[0] > 0
        self._show_plan()
        if not self._can_start:
            self.preview.forget()
            self.panel.show_notice("Accept at least one label in a training case, then train.", True)
        else:
            self._measure()
            self._controller.worker.submit(Job(_device_advice, on_result=self._show_advice))

    def _measure(self) -> None:
        """Ask for the plan, where somebody looks at the panel and no run takes the machine's time."""
        looked_at = self.panel is not None and self.panel.isVisible()
        if looked_at and self._can_start and self.current is None and self._store is not None:
            state = (str(self._store.folder), tuple(r.revision_id for r in self._store.snapshot().revisions),
                     len(self._store.cases()))  # fmt: skip
            self.preview.measure(self._store.folder, state)

    @property
    def _steps(self) -> int:
        """Of a training by steps; 0: by minutes."""
        return int(self._form["steps"].value) if self._form is not None else 0

    @property
    def _labelled_only(self) -> bool:
        return self._form is not None and self._form["mode"].value == "labelled_only"

    def _show_plan(self) -> None:
        """The plan for the minutes chosen, and whether Start is offered."""
        if self.panel is None or self._store is None:
            return
        running = self.current is not None
        preview = Preview(_BY_STEPS) if self._steps else self.preview.of(self.panel.minutes, self._labelled_only)
        if not self._can_start or running:
            preview = Preview(preview.line if self._can_start and not preview.refused else "", preview.reasons)
        self.panel.show_plan(preview.line, list(preview.reasons), preview.refused)
        self.panel.show_running(
            running, can_start=self._can_start and not preview.refused,
            can_resume=not running and bool(TrainingRun.resumable(self._store)),
        )  # fmt: skip

    def _show_advice(self, text: str) -> None:
        if self.panel is not None:
            self.panel.show_notice(text, bool(text))

    def start(self) -> None:
        """Start a detached run with the form's settings, by minutes unless it holds steps."""
        values = form_values(self._form) if self._form is not None else {}
        if not values.get("steps") and self.panel is not None:
            values["minutes"] = self.panel.minutes
        taken = [model.name for model in self._controller.workspace.models]
        name = ["--name", model_name(self.panel.model_name, taken)] if self.panel is not None else []
        self.start_with({name: value for name, value in values.items() if name != "steps" or value}, name)

    def _suggest_name(self) -> None:
        if self.panel is not None:
            taken = [model.name for model in self._controller.workspace.models]
            self.panel.suggest_name(model_name(self.panel.model_name, taken))

    def start_with(self, values: dict[str, Any], extra: list[str]) -> None:
        """Start a detached run with some settings and further flags."""
        if self._store is None or self.current is not None:
            return
        flags = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        try:
            self._controller.workspace.remember_model()  # a new model does not take its place by being newer
            self._store.cases("train")  # a study that was moved away must not get a new folder in its old place
            self._follow(TrainingRun.start(self._store, [*flags, *extra], parent=self))
        except (OSError, UserError) as error:
            self._controller.fail(sentence(error))

    def resume(self) -> None:
        """Go on with the newest run that did not finish."""
        if self._store is not None and self.current is None and (name := TrainingRun.resumable(self._store)):
            try:
                self._follow(TrainingRun.start(self._store, [], resume=name, parent=self))
            except (OSError, UserError) as error:
                self._controller.fail(sentence(error))

    def stop(self) -> None:
        if self.current is not None:
            self.current.stop()
            if self.panel is not None:
                self.panel.show_stage("Stopping: a usable model is being saved …", 0, 0)

    def _follow(self, run: TrainingRun) -> None:
        self.current = run
        if self.preview.measuring:
            self.preview.forget()
        self._minutes = 0.0
        self._before = self._after = None
        self._failed = False
        if self.panel is not None:
            self.panel.show_run_begun()
            self.panel.show_running(True, False, False)
        slot = self._controller.slot
        run.event_arrived.connect(slot(self._arrived, once=True))
        run.ended.connect(slot(self._ended))

    def _arrived(self, event: Any) -> None:
        panel = self.panel
        match event:
            case Started() if panel is not None:
                self._minutes, self._validated = event.minutes, event.validation
                panel.show_stage(f"Training on {event.device} …", 0, event.steps)
            case Progress() if panel is not None:
                self._show_progress(panel, event)
            case Validation():
                self._show_validation(event)
            case Note(level="warning") if panel is not None:
                panel.show_notice(event.text, True)
            case Finished():
                self.new_model = event.model
            case Failed():
                self._failed = True
                self._controller.warn(f"Training ended: {event.text}")
                if panel is not None:
                    panel.show_stage(event.text, 0, 1)
            case _:
                pass

    def _show_progress(self, panel: TrainPanel, event: Progress) -> None:
        stage = f"{printable(event.stage).capitalize()}: {event.step:,} of {event.steps:,}"
        if event.seconds_left is None:
            panel.show_stage(stage, event.step, event.steps)
        elif self._minutes:  # one countdown over all stages, and one bar
            done = 1 - min(1.0, max(0.0, event.seconds_left) / (60 * self._minutes))
            panel.show_stage(f"{time_left(event.seconds_left)}. {stage}.", round(1000 * done), 1000)
        else:
            panel.show_stage(f"{stage}, {clock_time(event.seconds_left)} left", event.step, event.steps)
        if event.stage.startswith("training"):
            for name, value in event.losses.items():
                if name != WAITED:
                    panel.losses.add(name, event.step, value)

    def _show_validation(self, event: Validation) -> None:
        if event.step == 0:
            self._before = event
        else:
            self._after = event
        if self.panel is not None and event.step:
            for kind in ("student", "text_mask", "merged"):
                scores = list(getattr(event, kind).values())
                if scores:
                    self.panel.dice.add(kind_name(kind), event.step, sum(scores) / len(scores))

    def _ended(self) -> None:
        self.current = None
        if self.panel is not None and not self._failed:
            found = verdict(self._before, self._after, self._validated)
            text = f"{found.sentence} Saved as {self.new_model}."
            if self._store is not None and (flattered := unchanged_validation_labels(self._store)):
                text += f" {flattered} validation label(s) are a model's own mask, accepted unchanged, and favour it."
            self.panel.show_result(comparison(self._before, self._after), text, found.worse)
        self._controller.refresh_lists()
        self.labels_changed()

    def use_new_model(self) -> None:
        """Choose the new model for prompting; the one before stays at hand."""
        before = self._controller.workspace.model
        self.old_model = before.name if before is not None else ""
        self._choose(self.new_model, self.old_model)

    def use_old_model(self) -> None:
        """The way back: nothing of the new model is lost."""
        self._choose(self.old_model, "")

    def _choose(self, name: str, before: str) -> None:
        self._controller.workspace.use(name)
        self._controller.refresh_lists()
        if self.panel is not None:
            self.panel.show_model_in_use(f"Prompts are read by the model {name}.", before if before != name else "")

    def close(self) -> None:
        """The window closes: stop following; the run goes on."""
        self.preview.forget()
        if self.current is not None:
            self.current.forget()


def _device_advice() -> Any:
    """Yield what to say about the GPU: torch without CUDA beside an NVIDIA card is a common mistake."""
    import shutil

    import torch

    cpu_only = shutil.which("nvidia-smi") is not None and not torch.cuda.is_available()
    yield (
        "An NVIDIA GPU was found, but torch is CPU-only. Fix it with: pip install --force-reinstall torch"
        if cpu_only
        else ""
    )
