"""Small studies and models for the library's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from amvlm.config import EncoderSettings, GeneratorSettings, StudentSettings
from amvlm.learning import planned_opening
from amvlm.models import AmvlmModel, KnownStructure, ModelCard, VisionLanguageModel, build_generator, build_student
from amvlm.planning import Fingerprint, Machine, Plan, make_plan
from amvlm.store import LabelStore


def _build_model(
    form: str = "film_unet", size: int = 32, names: tuple[str, ...] = ("anterior hippocampus",)
) -> AmvlmModel:
    """An untrained model of the smallest size."""
    vlm = VisionLanguageModel(EncoderSettings(image_size=size))
    generator = GeneratorSettings(form=form, network="unet", channels=(8, 16))
    student = StudentSettings(network="unet", channels=(8, 16))
    card = ModelCard(name="x", kind="trained", structures=tuple(KnownStructure(name=name) for name in names))
    model = AmvlmModel(
        vlm, build_generator(generator, vlm, 0.05), generator, build_student(student, len(names)), student, card
    )
    return model.eval()


@pytest.fixture
def build_model() -> Callable[..., AmvlmModel]:
    """Make an untrained model: ``build_model(form, size, names)``."""
    return _build_model


@pytest.fixture
def sample_store(sample_template: Path, tmp_path: Path) -> LabelStore:
    """A fresh copy of the sample study, the start set accepted."""
    shutil.copytree(sample_template, tmp_path / "study")
    return LabelStore(tmp_path / "study")


@pytest.fixture
def captioned_store(sample_store: LabelStore) -> LabelStore:
    """The sample study with labels in three validation cases."""
    for case in sample_store.cases("val")[:3]:
        for structure in sample_store.structures():
            mask = sample_store.masks.read(sample_store.references()[case.case_id, structure.name]).array
            sample_store.accept(case.case_id, structure.name, mask)
    return sample_store


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known machine, and plans cut to ten narrow steps in two phases."""
    monkeypatch.setattr(planned_opening, "measured_machine", lambda *_: Machine(seconds_per_megapixel=5.0))
    monkeypatch.setattr(planned_opening, "text_steps", lambda *_: 2)

    def short(facts: Fingerprint) -> Plan:
        changes = {"recipe": "two_phase", "steps": 10, "widths": (4, 8), "batch_size": 4}
        return make_plan(facts).model_copy(update=changes)

    monkeypatch.setattr(planned_opening, "make_plan", short)
