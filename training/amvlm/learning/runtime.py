"""Where a run computes: device and precision through accelerate, the schedule, time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from amvlm.config import LoopSettings
from amvlm.errors import UserError
from amvlm.models.student import Student

_Batch = TypeVar("_Batch")


_MARGIN = 0.9


def fastest(network: nn.Module, image: torch.Tensor, precisions: list[str], threads: list[int]) -> tuple[str, int]:
    """Which precision and number of threads run a small training step fastest on this CPU (about 200 ms).

    The first of each list wins unless another is a tenth faster, so that the choice seldom turns on chance.
    """
    before = torch.get_num_threads()
    best = {(p, t): math.inf for t in threads for p in precisions}
    for round_ in range(3):
        for precision, count in best:
            torch.set_num_threads(count)
            seconds = _seconds_of_a_step(network, image, precision)
            if round_:
                best[precision, count] = min(best[precision, count], seconds)
    torch.set_num_threads(before)
    chosen = next(iter(best))
    for other, seconds in best.items():
        if seconds < _MARGIN * best[chosen]:
            chosen = other
    return chosen


def chosen_device(settings: LoopSettings) -> torch.device:
    """The device that the settings name; ``auto``: a GPU where torch can use one.

    Raises
    ------
    UserError
        If it is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device == "auto":
        return torch.device("cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(settings.device)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        there = f"torch sees {gpus} of them" if gpus else "torch sees no NVIDIA GPU"
        raise UserError(f"there is no device {settings.device}: {there}", remedy="Choose another --device.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("there is no device mps: torch sees no Apple GPU", remedy="Choose another --device.")
    return device


def gpu_precision(settings: LoopSettings, device: torch.device) -> str:
    """Precision on a GPU: the settings', else bf16 where its hardware multiplies it, fp16 on older NVIDIA GPUs."""
    if settings.precision != "auto":
        return settings.precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast_to(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for a forward pass; none for fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def start_accelerator(settings: LoopSettings, precision: str) -> Accelerator:
    """One accelerator per run; a second run in the same process may choose another device or precision."""
    AcceleratorState._reset_state()
    device = chosen_device(settings)
    if precision == "fp16" and device.type != "cuda":
        raise UserError("fp16 needs an NVIDIA GPU", remedy="Choose --precision auto.")
    if device.index is not None:
        torch.cuda.set_device(device)
    if settings.device == "cpu" and not PartialState._shared_state.get("_cpu", False):
        PartialState._reset_state()
    mixed = "no" if precision == "fp32" else precision
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=mixed, kwargs_handlers=[parallel])
    if settings.batch_size % accelerator.num_processes:
        raise UserError(
            f"a batch of {settings.batch_size} cannot be shared by {accelerator.num_processes} processes",
            remedy="Choose a batch size that their number divides.",
        )
    return accelerator


def _seconds_of_a_step(network: nn.Module, image: torch.Tensor, precision: str) -> float:
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = network(image).float().square().mean()
    torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad], allow_unused=True)
    return time.perf_counter() - began


def choose_compute(settings: LoopSettings, network: Student, size: int) -> tuple[str, int]:
    """Precision and CPU threads: the settings', else bf16 or fp16 on a GPU, and measured on a CPU.

    In three dimensions a CPU computes in fp32: the weight gradient of torch's bf16 convolution (2.13) reads memory that
    nobody wrote where a block is small, 2 × 8 × 8 for example.

    Raises
    ------
    UserError
        If bf16 is wanted for a 3-D student on a CPU.
    """
    threads = settings.threads or torch.get_num_threads()
    device = chosen_device(settings)
    if device.type != "cpu":
        return gpu_precision(settings, device), threads
    if network.settings.dimensions == 3:
        if settings.precision == "bf16":
            raise UserError(
                "a 3-D student cannot be trained in bf16 on a CPU: the gradients are wrong there",
                remedy="Choose --precision fp32 (or auto).",
            )
        settings = settings.model_copy(update={"precision": "fp32"})
    precisions: list[str] = ["bf16", "fp32"] if settings.precision == "auto" else [settings.precision]
    counts = [threads] if settings.threads or threads == 1 else [threads, 1]
    if len(precisions) * len(counts) == 1:
        return precisions[0], counts[0]
    count = 2
    if network.settings.dimensions == 2:
        count = 8
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fastest(network, torch.randn(count, network.planes, size, size), precisions, counts)


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class Clock:
    """Time left, from the pace since the start; and when the next report is due."""

    def __init__(self, steps: int, first: int = 0, every: float = 1.0) -> None:
        self._steps, self._first, self._every = steps, first, every
        self._began = self._last = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._every:
            return False
        self._last = now
        return True

    def left(self, step: int) -> float | None:
        """Seconds left after ``step`` steps; None before the pace is known."""
        done = step - self._first
        return (time.monotonic() - self._began) / done * (self._steps - step) if done >= 5 else None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


class Prefetcher(Generic[_Batch]):
    """Makes the next step's batch in a thread while the device computes; measures what the loop still waits.

    Parameters
    ----------
    make : callable
        Step → batch; must draw no chance but what is keyed by the step.
    steps : range
    """

    def __init__(self, make: Callable[[int], _Batch], steps: range) -> None:
        self._make, self._steps = make, steps
        self.waited = 0.0

    def __iter__(self) -> Iterator[tuple[int, _Batch]]:
        with ThreadPoolExecutor(1, "batches") as pool:
            coming = pool.submit(self._make, self._steps[0]) if self._steps else None
            for step in self._steps:
                began = time.perf_counter()
                batch = coming.result() if coming is not None else self._make(step)
                self.waited += time.perf_counter() - began
                coming = pool.submit(self._make, step + 1) if step + 1 < self._steps.stop else None
                yield step, batch


class Means:
    """Running means of named losses between two reports."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=loss.device)) + loss.detach()
        self._count += 1

    def mean(self) -> dict[str, torch.Tensor]:
        """The means so far, as tensors."""
        return {name: total / max(1, self._count) for name, total in self._sums.items()}

    def take(self) -> dict[str, float]:
        found = {name: round(float(total) / max(1, self._count), 5) for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return found


class FiniteWatch:
    """Notices the first step whose loss is no number, without waiting for the device at each step."""

    def __init__(self) -> None:
        self._first: torch.Tensor | None = None
        self._cases: dict[int, list[str]] = {}
        self._names: dict[int, dict[str, torch.Tensor]] = {}

    def see(self, step: int, losses: dict[str, torch.Tensor], case_ids: list[str]) -> None:
        total = torch.stack([loss.detach().float() for loss in losses.values()]).sum()
        if self._first is None:
            self._first = torch.full((), -1, dtype=torch.int64, device=total.device)
        self._first = torch.where((self._first < 0) & ~total.isfinite(), step, self._first)
        self._cases[step] = case_ids
        self._names[step] = {name: loss.detach() for name, loss in losses.items()}

    def check(self) -> None:
        """Wait for the device, and raise if a loss was not finite since the last check.

        Raises
        ------
        UserError
            Naming the step, the losses and the batch's cases.
        """
        first = -1 if self._first is None else int(self._first)
        if first >= 0:
            bad = [name for name, loss in self._names[first].items() if not bool(loss.isfinite())]
            cases = ", ".join(dict.fromkeys(self._cases[first]))
            raise UserError(
                f"{' and '.join(bad)} became NaN at step {first + 1}; the batch held {cases}",
                remedy="No model was saved; the last checkpoint is kept. Look at these cases, or lower the learning "
                "rate.",
            )
        self._cases.clear()
        self._names.clear()
