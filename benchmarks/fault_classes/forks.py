"""``amvlm`` commands in children of one warm process: the libraries load once, every command has limits of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ADDRESS_SPACE = 8 * 2**30
"""What a command may map beyond the warm process, bytes."""


@dataclass(frozen=True)
class Answer:
    """How a command ended: its exit code (negative: the signal), all that it printed, what it took.

    ``peak_mb`` is its peak resident memory above that of the warm process that it was forked from.
    """

    code: int
    out: str
    err: str
    seconds: float
    peak_mb: float
    hung: bool

    @property
    def text(self) -> str:
        return self.out + self.err


def warm_up() -> None:
    """Load what commands load."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", COLUMNS="2000", NO_COLOR="1", TERM="dumb")
    import nibabel
    import openpyxl
    import pydicom
    import SimpleITK
    import torch
    import torch.utils.tensorboard

    import amvlm.cli
    import amvlm.exchange
    import amvlm.inference
    import amvlm.learning
    import amvlm.models
    import amvlm.start

    torch.set_num_threads(1)
    assert all((nibabel, openpyxl, pydicom, SimpleITK, amvlm.start))


def in_fork(
    arguments: Sequence[str],
    output: Path,
    *,
    cwd: Path,
    environment: Mapping[str, str],
    seconds: float = 60,
    address_space: int = ADDRESS_SPACE,
    prepare: Callable[[], None] | None = None,
    during: Callable[[int], None] | None = None,
    instead: Callable[[], object] | None = None,
) -> Answer:
    """Run ``amvlm ARGUMENTS`` as its entry point does, in a forked child.

    Parameters
    ----------
    output : Path
        Two files of this name, ``.out`` and ``.err``, hold what it prints.
    prepare : callable, optional
        Runs in the child before the command.
    during : callable (process id), optional
        Runs in this process while the command does.
    instead : callable, optional
        Runs in the child in place of a command.
    """
    started, own_mb = time.monotonic(), _status("RssAnon") / 2**20

    def act() -> int:
        for number, path in ((1, output.with_suffix(".out")), (2, output.with_suffix(".err"))):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.setsid()
        os.chdir(cwd)
        os.environ.update(environment)
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + address_space, resource.RLIM_INFINITY))
        if prepare is not None:
            prepare()
        return _as_entry_point(arguments, instead)

    process = _fork(act)
    if during is not None:
        during(process)
    code, peak, hung = _wait(process, started, seconds)
    out, err = (output.with_suffix(end).read_text("utf-8", "replace") for end in (".out", ".err"))
    return Answer(code, out, err, time.monotonic() - started, max(0.0, peak - own_mb), hung)


def _status(field: str) -> int:
    """A size of this process as the kernel states it, bytes; a child begins with the anonymous pages."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def _as_entry_point(arguments: Sequence[str], instead: Callable[[], object] | None) -> int:
    """What the console script does, with what Python itself would print and return."""
    import amvlm.start

    sys.argv = ["amvlm", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        (instead or amvlm.start.main)()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - the last line of defence of any Python program
        if not any("amvlm" in frame.filename.split("/") for frame in traceback.extract_tb(error.__traceback__)):
            return -_end_by(signal.SIGINT)  # Ctrl-C before the command began
        traceback.print_exc()
        return 1
    return 0


def _end_by(number: int) -> int:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return number


def rename_host(name: str) -> None:
    """``prepare``: a host name of this child's own, where the kernel lets us (Linux, as root)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x04000000) == 0:  # CLONE_NEWUTS
        socket.sethostname(name)


def _fork(act: Callable[[], int]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        code = 70
        try:
            code = act()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # noqa: BLE001 - a child never returns into the catalogue
            traceback.print_exc()
        finally:
            os._exit(code)
    return process


def _wait(process: int, started: float, seconds: float) -> tuple[int, float, bool]:
    """Exit code, peak resident memory in MB, and whether it had to be killed."""
    hung = False
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024, hung
        if time.monotonic() - started > seconds and not hung:
            hung = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.005)


def in_fresh_process(
    command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], seconds: float = 90
) -> Answer:
    """Run any command with an interpreter of its own, standard input closed."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            list(command), cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, timeout=seconds,
            capture_output=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        out, err = ((part or b"").decode("utf-8", "replace") for part in (late.stdout, late.stderr))
        return Answer(-9, out, err, seconds, 0, True)
    out, err = (part.decode("utf-8", "replace") for part in (done.stdout, done.stderr))
    return Answer(done.returncode, out, err, time.monotonic() - started, 0, False)
