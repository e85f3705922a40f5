"""A run that goes on from the model before it: its networks' weights, where they are of the same layers."""

from __future__ import annotations

from collections.abc import Sequence

from amvlm.config import TrainSettings
from amvlm.models import AmvlmModel
from amvlm.models.planned import PlannedStudent
from amvlm.models.planned_text import PlannedFilmUNet
from amvlm.planning import Plan


def widths_to_keep(base: AmvlmModel, structures: Sequence[str], settings: TrainSettings) -> tuple[int, ...]:
    """Channels by level of the base's prediction, if it is of these structures; else nothing."""
    plan = base.plan
    if settings.from_scratch or base.student is None or plan is None or plan.network != "half_unet":
        return ()
    return plan.widths if plan.structures == tuple(structures) else ()


def known_student(base: AmvlmModel, plan: Plan, settings: TrainSettings) -> PlannedStudent | None:
    """The base's prediction, if it has this plan's layers and structures."""
    own, student = base.plan, base.student
    if settings.from_scratch or own is None or not isinstance(student, PlannedStudent):
        return None
    return student if _layers(own) == _layers(plan) and own.structures == plan.structures else None


def known_text(base: AmvlmModel, network: PlannedFilmUNet, settings: TrainSettings) -> PlannedFilmUNet | None:
    """The base's text network, if it has the layers of ``network`` and its study's structures."""
    own = base.generator
    if settings.from_scratch or base.plan is None or not isinstance(own, PlannedFilmUNet):
        return None
    alike = own.settings == network.settings and _layers(own.plan) == _layers(network.plan)
    return own if alike and own.plan.structures == network.plan.structures else None


def _layers(plan: Plan) -> tuple[object, ...]:
    return plan.dimensions, plan.network, plan.widths, plan.decoder, plan.strides, plan.inputs, plan.outputs
