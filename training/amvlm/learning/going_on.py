"""A run that goes on from the model before it: its networks' weights, where they have the same layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amvlm.config import TrainSettings
from amvlm.models import AmvlmModel
from amvlm.models.half_unet import HalfUNet
from amvlm.models.planned import PlannedStudent
from amvlm.models.planned_text import PlannedFilmUNet
from amvlm.planning import Plan


def widths_to_keep(base: AmvlmModel, structures: Sequence[str], settings: TrainSettings) -> tuple[int, ...]:
    """Channels by level of the base's prediction, if it knows these structures; else nothing."""
    plan = base.plan
    if settings.from_scratch or base.student is None or plan is None or plan.network != "half_unet":
        return ()
    return plan.widths if set(structures) <= set(plan.structures) else ()


@torch.no_grad()
def start_student(student: PlannedStudent, base: AmvlmModel, settings: TrainSettings) -> bool:
    """Take over the base's prediction, if it knows all structures of the plan and has its layers; whether it was so.

    The last layer takes over the weights of its own structures.
    """
    plan, own, known = student.plan, base.plan, base.student
    if settings.from_scratch or own is None or not isinstance(known, PlannedStudent):
        return False
    if _layers(own) != _layers(plan) or not set(plan.structures) <= set(own.structures):
        return False
    if own.structures == plan.structures and own.exclusive == plan.exclusive:
        student.load_state_dict(known.state_dict())
        return True
    network, before = student.network, known.network
    if not isinstance(network, HalfUNet) or not isinstance(before, HalfUNet):
        return False
    network.load_state_dict({k: v for k, v in before.state_dict().items() if not k.startswith("read.")}, strict=False)
    _take_rows(network.read, before.read, plan, own)
    return True


def known_text(base: AmvlmModel, network: PlannedFilmUNet, settings: TrainSettings) -> PlannedFilmUNet | None:
    """The base's text network, if it has the layers of ``network`` and knows its structures."""
    own = base.generator
    if settings.from_scratch or base.plan is None or not isinstance(own, PlannedFilmUNet):
        return None
    alike = own.settings == network.settings and _layers(own.plan) == _layers(network.plan)
    return own if alike and set(network.plan.structures) <= set(own.plan.structures) else None


def _take_rows(read: nn.Conv2d, before: nn.Conv2d, plan: Plan, own: Plan) -> None:
    """Each structure's four channels, one for each pixel that is unfolded; the background's are 0."""
    for new, old in ((read.weight, before.weight), (_bias(read), _bias(before))):
        new.zero_()
        for place, name in enumerate(plan.structures):
            to = 4 * (place + int(plan.exclusive))
            source = 4 * (own.structures.index(name) + int(own.exclusive))
            new[to : to + 4].copy_(old[source : source + 4])


def _bias(layer: nn.Conv2d) -> Tensor:
    if layer.bias is None:
        raise ValueError("the layer has no bias")
    return layer.bias


def _layers(plan: Plan) -> tuple[object, ...]:
    return plan.dimensions, plan.network, plan.widths, plan.decoder, plan.strides, plan.inputs
