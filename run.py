"""Set up and run: ``python run.py demo | test | lint | demo-model``. Standard library only."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
SYSTEM_PACKAGES = """
    xvfb xauth libgl1 libegl1 libgl1-mesa-dri libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libxcb-shape0
    libxcb-image0 libxcb-render-util0 libxcb-xinerama0 libxkbcommon-x11-0 libdbus-1-3
""".split()  # noqa: SIM905 - a list to read


def stop(sentence: str) -> None:
    raise SystemExit(f"run.py: {sentence}")


def clean_environment() -> dict[str, str]:
    """This environment without what names code for Python to run."""
    unsafe = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT")
    return {name: value for name, value in os.environ.items() if name.upper() not in unsafe}


def call(command: list[str], failed: str, **kwargs: object) -> None:
    """Run a set-up command; say in words what to do when it fails."""
    if subprocess.call(command, **{"cwd": ROOT, "env": clean_environment(), **kwargs}) != 0:
        stop(failed)


def fingerprint(extras: str) -> str:
    wanted = [
        extras,
        sys.version,
        *((ROOT / name).read_text("utf-8") for name in ("pyproject.toml", "constraints.txt")),
    ]
    return hashlib.sha256("\n".join(wanted).encode()).hexdigest()


def create_environment() -> None:
    print("Creating .venv …", flush=True)
    os.chdir(ROOT)  # venv starts Python, too
    try:
        venv.create(VENV, with_pip=True)
    except (OSError, subprocess.CalledProcessError):  # Debian ships venv without pip until python3-venv is there
        shutil.rmtree(VENV, ignore_errors=True)
        advice = "the virtual environment could not be made. On Debian or Ubuntu: sudo apt-get install python3-venv"
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            stop(advice)
        call(["apt-get", "update", "-qq"], advice)
        call(["apt-get", "install", "-y", "-qq", "python3-venv"], advice, stdout=subprocess.DEVNULL)
        call([sys.executable, "-P", "-m", "venv", str(VENV)], advice)


def install(extras: str) -> None:
    """Create the virtual environment and install the project once; later calls return at once."""
    stamp = VENV / f"installed-{extras.replace(',', '-')}"
    if stamp.is_file() and stamp.read_text() == fingerprint(extras):
        return
    if not PYTHON.exists():
        create_environment()
    print(f"Installing napari-amvlm[{extras}]: several minutes, once …", flush=True)
    call(
        [
            str(PYTHON),
            "-P",
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--root-user-action=ignore",
            "-e",
            f".[{extras}]",
            "-c",
            "constraints.txt",
        ],
        "the packages could not be installed. Check the network (or your package index) and run this again; "
        "delete the folder .venv to start over.",
    )
    stamp.write_text(fingerprint(extras))


def has_display() -> bool:
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def missing_system_packages() -> list[str]:
    if not sys.platform.startswith("linux"):
        return []
    if shutil.which("dpkg-query") is None:
        return [] if has_display() or shutil.which("xvfb-run") else ["xvfb"]
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", *SYSTEM_PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {line.split()[0] for line in listed.stdout.splitlines() if line.split()[-1].startswith("ii")}
    wanted = [name for name in SYSTEM_PACKAGES if not (has_display() and name in ("xvfb", "xauth"))]
    return [name for name in wanted if name not in installed]


def install_system_packages() -> None:
    missing = missing_system_packages()
    if not missing:
        return
    advice = "install these system packages and run this again: sudo apt-get install " + " ".join(missing)
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        stop(f"Qt needs system libraries, and Xvfb stands in for a display; {advice}")
    print("Installing system libraries for Qt and Xvfb …", flush=True)
    quiet = {**clean_environment(), "DEBIAN_FRONTEND": "noninteractive"}
    call(["apt-get", "update", "-qq"], f"apt-get update failed; check the network, or {advice}", env=quiet)
    call(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
        f"apt-get install failed; check the network, or {advice}",
        env=quiet,
        stdout=subprocess.DEVNULL,
    )


def run(*arguments: str, windowed: bool = True) -> int:
    """Run a Python module of the environment, under Xvfb where a window is needed and no display is there.

    Nothing in the working directory and nothing that ``PYTHONPATH`` names is imported.
    """
    command = [str(PYTHON), "-P", "-m", *arguments]
    if windowed and not has_display():
        command = ["xvfb-run", "-a", "-s", "-screen 0 1680x1050x24", *command]
    return subprocess.call(command, cwd=ROOT, env=clean_environment())


def fetch_weights() -> None:
    """The published text encoder that the bundled model names; kept in the user's cache, so this downloads it once."""
    if run("amvlm", "weights", "fetch", "minilm", windowed=False) != 0:
        print("run.py: going on without it: what needs it says so, tests that need it are skipped", file=sys.stderr)


def demo(*arguments: str) -> int:
    install_system_packages()
    install("all,test")
    fetch_weights()
    mode = [] if has_display() else ["--unattended"]
    return run("napari_amvlm.demo", *mode, *arguments)


def test(*arguments: str) -> int:
    """All tests in a process per core, each on a screen of its own; with arguments, pytest as they say."""
    install_system_packages()
    install("all,test")
    fetch_weights()
    side_by_side = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "worksteal"]
    return run("pytest", *(arguments or side_by_side), windowed=False)


def lint() -> int:
    install("all,test")
    install("dev")
    return (
        run("ruff", "check", ".", windowed=False)
        or run("mypy", windowed=False)
        or subprocess.call([str(BIN / "lint-imports")], cwd=ROOT, env=clean_environment())
    )


def demo_model(*arguments: str) -> int:
    install("all,test")
    fetch_weights()
    return run("amvlm.demo_model", *arguments, windowed=False)


def system() -> int:
    install_system_packages()
    return 0


COMMANDS = {"demo": demo, "test": test, "lint": lint, "demo-model": demo_model, "system": system}


def main() -> int:
    if sys.version_info < (3, 11):
        stop(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}. Call it as: python3.11 run.py …")
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        stop(f"usage: python run.py {' | '.join(COMMANDS)}")
    return COMMANDS[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    raise SystemExit(main())
