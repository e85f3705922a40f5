"""A run's state on disk, to resume from any kill: tensors in safetensors, the rest in JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from amvlm.errors import UserError
from amvlm.imaging import write_bytes_atomically

KEEP = 2


def save_checkpoint(
    run_folder: Path,
    step: int,
    networks: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    notes: dict[str, Any],
) -> None:
    """Write ``checkpoint-<step>``; the state file comes last, so a folder without it is not a checkpoint."""
    folder = run_folder / f"checkpoint-{step:07d}"
    tensors: dict[str, Tensor] = {}
    for part, network in networks.items():
        tensors |= {f"{part}.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    content = save({n: t.detach().cpu().clone().contiguous() for n, t in tensors.items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(folder / "tensors.safetensors", content)
        write_bytes_atomically(folder / "state.json", json.dumps({"step": step, "notes": notes}).encode())
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"the checkpoint of step {step} could not be saved ({error.strerror}); the one before it is intact",
            file=run_folder,
            remedy="Free disk space, then go on with --resume.",
        ) from error
    for old in checkpoints(run_folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in run_folder.glob("checkpoint-*/state.json"))


def load_checkpoint(
    run_folder: Path, networks: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """Restore the newest checkpoint; return its step and notes."""
    found = checkpoints(run_folder)
    if not found:
        raise UserError("this run has no checkpoint yet", file=run_folder, remedy="Start a new run.")
    tensors = load_file(found[-1] / "tensors.safetensors")
    for part, network in networks.items():
        prefix = f"{part}."
        network.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            like = parameters[int(index)]
            if tensor.shape == like.shape:  # in the parameter's own memory order, which fused kernels rely on
                tensor = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
            moments.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    state = json.loads((found[-1] / "state.json").read_text("utf-8"))
    return int(state["step"]), dict(state["notes"])
