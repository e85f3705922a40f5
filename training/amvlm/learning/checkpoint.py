"""A run's state on disk, to resume from any kill: tensors in safetensors, the rest in JSON, a hash over both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load, save
from torch import Tensor, nn

from amvlm.errors import UserError
from amvlm.imaging import write_bytes_atomically
from amvlm.outside import read_small
from amvlm.store.folders import CHECKPOINT_FILES, is_folder, make_private, remove_files

KEEP = 2
_LONGEST_STATE, _HEADER = 16 << 20, 16 << 20


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")

    step: int = Field(ge=0, le=10**9)
    notes: dict[str, Any]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Checkpoint(NamedTuple):
    """Where a run goes on; ``doubt`` says why it is not from its newest checkpoint, or is empty."""

    step: int
    notes: dict[str, Any]
    doubt: str


def save_checkpoint(
    run_folder: Path,
    step: int,
    networks: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    notes: dict[str, Any],
) -> None:
    """Write ``checkpoint-<step>``; the state file comes last, so a folder without it is not a checkpoint.

    Raises
    ------
    UserError
        If the disk does not take it; the checkpoint before is intact.
    """
    folder = run_folder / f"checkpoint-{step:07d}"
    tensors: dict[str, Tensor] = {}
    for part, network in networks.items():
        tensors |= {f"{part}.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    content = save({n: t.detach().cpu().clone().contiguous() for n, t in tensors.items()})
    state = _State(step=step, notes=notes, sha256=_hash(step, notes, content))
    try:
        make_private(run_folder)
        make_private(folder)
        (folder / "state.json").unlink(missing_ok=True)  # of a step that is done again
        write_bytes_atomically(folder / "tensors.safetensors", content)
        write_bytes_atomically(folder / "state.json", json.dumps(state.model_dump()).encode())
    except (OSError, UserError) as error:
        remove_files(folder, CHECKPOINT_FILES)
        why = error.strerror if isinstance(error, OSError) else error.what
        raise UserError(
            f"the checkpoint of step {step} could not be saved ({why}); the one before it is intact",
            file=run_folder,
            remedy="Free disk space, then go on with --resume.",
        ) from error
    for old in checkpoints(run_folder)[:-KEEP]:
        remove_files(old, CHECKPOINT_FILES)


def checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not is_folder(run_folder):
        return []
    return sorted(path.parent for path in run_folder.glob("checkpoint-*/state.json") if is_folder(path.parent))


def load_checkpoint(
    run_folder: Path, networks: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer
) -> Checkpoint:
    """Restore the newest checkpoint whose hash holds.

    Raises
    ------
    UserError
        If there is none, or if it belongs to other settings.
    """
    found = checkpoints(run_folder)
    if not found:
        raise UserError("this run has no checkpoint yet", file=run_folder, remedy="Start a new run.")
    weights = sum(tensor.nbytes for network in networks.values() for tensor in network.state_dict().values())
    longest = 3 * weights + _HEADER  # the optimiser keeps two numbers per weight
    for place, folder in enumerate(reversed(found)):
        try:
            state, tensors = _read(folder, longest)
        except (OSError, ValueError, safetensors.SafetensorError):
            continue
        try:
            _restore(networks, optimiser, tensors)
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            raise UserError(
                "the checkpoint does not fit this run's settings", file=folder, remedy="Start a new run."
            ) from error
        doubt = f"The newest checkpoint is damaged: the run goes on from step {state.step}." if place else ""
        return Checkpoint(state.step, state.notes, doubt)
    raise UserError("every checkpoint of this run is damaged", file=run_folder, remedy="Start a new run.")


def notes_damaged(run_folder: Path) -> UserError:
    """The error for a checkpoint whose notes are not what this program writes."""
    return UserError("the checkpoint's notes are not valid", file=run_folder, remedy="Start a new run.")


def checked_state(notes: dict[str, Any], names: tuple[str, ...], run_folder: Path) -> dict[str, float]:
    """The notes of a stage of pre-training, which are numbers of these names.

    Raises
    ------
    UserError
    """
    if any(isinstance(notes.get(name), bool) or not isinstance(notes.get(name), int | float) for name in names):
        raise notes_damaged(run_folder)
    return {name: notes[name] for name in names}


def _hash(step: int, notes: dict[str, Any], tensors: bytes) -> str:
    digest = hashlib.sha256(json.dumps([step, notes]).encode())
    digest.update(tensors)
    return digest.hexdigest()


def _read(folder: Path, longest: int) -> tuple[_State, dict[str, Tensor]]:
    try:
        state = _State.model_validate(json.loads(read_small(folder / "state.json", _LONGEST_STATE)))
    except (ValidationError, RecursionError) as error:
        raise ValueError("no state of ours") from error
    content = read_small(folder / "tensors.safetensors", longest)
    if _hash(state.step, state.notes, content) != state.sha256:
        raise ValueError("the hash does not hold")
    return state, load(content)


def _restore(networks: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
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
