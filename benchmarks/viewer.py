"""The viewer beside plain napari in one run: opening, stepping, painting, prompting, three dimensions, memory.

    xvfb-run -a -s "-screen 0 1680x1050x24" python benchmarks/viewer.py [--size 512 512 400] [--rounds 200]

Plain napari holds the same arrays in the same nine layers and the same grid, without this plugin, in the same process;
the two take turns. Absolute times depend on the machine; the ratios are what counts. The volume is synthetic CT; the
model is the bundled one (its text mask of a synthetic volume means nothing, its cost is the same).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import QEventLoop, QObject, QTimer
from qtpy.QtWidgets import QApplication

from amvlm.imaging import Volume, read_volume, to_canonical, to_display, write_volume
from napari_amvlm.layers import LABEL, STRIDE
from napari_amvlm.widgets import SegmentWithText

PROMPT, SECOND = "anterior hippocampus", "posterior hippocampus"


def pump(until: Callable[[], bool], seconds: float = 600) -> float:
    """Run the event loop until something holds; how long that took."""
    began = time.perf_counter()
    loop, timer, reached = QEventLoop(), QTimer(), [until()]

    def look() -> None:
        reached[0] = until()
        if reached[0] or time.perf_counter() - began > seconds:
            loop.quit()

    timer.timeout.connect(look)
    timer.start(2)
    if not reached[0]:
        loop.exec()
    timer.stop()
    if not reached[0]:
        raise TimeoutError
    return time.perf_counter() - began


def heartbeat(start: Callable[[], Any], until: Callable[[], bool]) -> np.ndarray:
    """Gaps between beats of a 5 ms timer while something goes on, ms."""
    beats: list[float] = []
    timer = QTimer()
    timer.setInterval(5)
    timer.timeout.connect(lambda: beats.append(time.perf_counter()))
    timer.start()
    pump(lambda: len(beats) > 3)
    beats.clear()
    start()
    pump(until)
    pump(lambda: len(beats) > 20)
    timer.stop()
    return np.diff(beats) * 1000


def spread(values: Any) -> str:
    return f"{np.percentile(values, 50):.1f} / {np.percentile(values, 95):.1f}"


def synthetic(shape: tuple[int, int, int], path: Path) -> Path:
    """A body of soft tissue with a few bones and noise, int16, F-ordered as NIfTI stores it."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-20, 20, (shape[0], shape[1], 32), dtype=np.int16)
    array = np.empty(shape, np.int16, order="F")
    x, y = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape[:2]], indexing="ij")
    body = np.where(x**2 + (y * 1.4) ** 2 < 0.7, 50, -1000).astype(np.int16)
    body[(x**2 + (y - 0.3) ** 2) < 0.02] = 600
    for z in range(shape[2]):
        array[:, :, z] = body + noise[:, :, z % 32]
    write_volume(path, Volume(array, np.diag([-0.8, -0.8, 1.0, 1.0])))
    return path


class Plain:
    """napari alone with the same nine layers."""

    def __init__(self, ras: np.ndarray, scale: tuple[float, ...]) -> None:
        self.viewer = napari.Viewer(show=True)
        self.viewer.window._qt_window.resize(1400, 900)
        shown = to_display(ras)
        empty = [np.zeros(ras.shape, np.uint8, order="F") for _ in range(4)]
        for cell in range(3):
            self.viewer.add_image(shown, scale=scale, contrast_limits=(-160, 240), interpolation2d="linear")
            self.viewer.add_labels(to_display(empty[cell]), scale=scale)
            outlines = self.viewer.add_labels(to_display(empty[3]), scale=scale)
            outlines.contour = 1
        grid = self.viewer.canvas.grid
        grid.stride, grid.shape, grid.enabled = STRIDE, (1, 3), True
        self.label = self.viewer.layers[7]
        self.viewer.layers.selection.active = self.label
        self.masks = empty


class Ours:
    """The same scan in the plugin."""

    def __init__(self) -> None:
        self.viewer = napari.Viewer(show=True)
        self.viewer.window._qt_window.resize(1400, 900)
        self.panel = SegmentWithText(self.viewer)
        self.viewer.window.add_dock_widget(self.panel)
        self.controller = self.panel.controller
        pump(lambda: not self.controller.worker.busy)

    def open(self, path: Path) -> float:
        before = self.controller.layers
        self.controller.studies.open_scan(path)
        return pump(lambda: self.controller.layers is not before and self.controller.layers is not None)

    def idle(self) -> float:
        return pump(lambda: not self.controller.worker.busy)

    def prompt(self, text: str) -> tuple[float, float]:
        """Seconds until the first slice shows, and until all are done."""
        layers = self.controller.layers
        first: list[float] = []
        shown = layers.refresh

        def seen(*arguments: Any) -> None:
            shown(*arguments)
            first.append(time.perf_counter())

        layers.refresh = seen
        self.panel.prompt.setPlainText(text)
        began = time.perf_counter()
        self.panel.prompt.submit()
        whole = self.idle()
        layers.refresh = shown
        return first[0] - began, whole


def drawn(viewer: Any) -> None:
    """Let slicing and drawing come to an end."""
    viewer.window._qt_viewer.canvas.native.update()
    for _ in range(3):
        QApplication.processEvents()


def step(viewer: Any, z: int) -> float:
    began = time.perf_counter()
    viewer.dims.set_current_step(0, z)
    drawn(viewer)
    return (time.perf_counter() - began) * 1000


def paint(viewer: Any, label: Any, z: int) -> float:
    began = time.perf_counter()
    label.paint((z, label.data.shape[1] // 2, 100 + z % 50), 1)
    drawn(viewer)
    return (time.perf_counter() - began) * 1000


def three_dimensions(viewer: Any) -> float:
    began = time.perf_counter()
    viewer.dims.ndisplay = 3
    drawn(viewer)
    taken = time.perf_counter() - began
    viewer.dims.ndisplay = 2
    drawn(viewer)
    return taken


def rss() -> float:
    """Resident memory, GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def saving(ours: Ours, path: Path, folder: Path) -> np.ndarray:
    """Put the scan into a study, prompt, accept."""
    from amvlm.exchange import import_study
    from amvlm.store import LabelStore

    import_study(path, folder)
    LabelStore(folder).add_structure(PROMPT, prompts=[PROMPT])
    ours.controller.studies.open_study(folder)
    pump(lambda: bool(ours.controller.open_case_id) and not ours.controller.worker.busy)
    ours.prompt(PROMPT)
    if not ours.controller.layers.masks[LABEL].any():
        ours.controller.layers.labels[LABEL].paint((50, 200, 200), 1)
    return heartbeat(
        ours.controller.judging.accept, lambda: not ours.controller.judging.saving and not ours.controller.worker.busy
    )


def rounds(ours: Ours, count: int, folder: Path) -> list[tuple[int, float, int, int]]:
    """Open, prompt, accept, close, again and again on the sample study: (round, GB, threads, Qt objects)."""
    from amvlm.sample import copy_sample_study

    copy_sample_study(folder)
    ours.controller.studies.open_study(folder)
    pump(lambda: bool(ours.controller.open_case_id) and not ours.controller.worker.busy)
    found = []
    for number in range(count):
        ours.panel.prompt.setPlainText(PROMPT)
        ours.panel.prompt.submit()
        ours.idle()
        case_id = ours.controller.open_case_id
        ours.controller.judging.accept()
        pump(lambda: not ours.controller.judging.saving and not ours.controller.worker.busy)
        if ours.controller.open_case_id == case_id:  # every case is judged: begin again
            cases = [case.case_id for case in ours.controller.store.cases()]
            ours.controller.open_case(cases[(cases.index(case_id) + 1) % len(cases)])
            ours.idle()
        if number % 20 == 19 or number == 4:
            gc.collect()
            objects = len(ours.viewer.window._qt_window.findChildren(QObject))
            found.append((number + 1, rss(), threading.active_count(), objects))
            print("round", *found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table: dict[str, Any] = {"size": list(given.size), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = synthetic(tuple(given.size), folder / "scan.nii.gz")
        megabytes = int(np.prod(given.size)) * 2 / 2**20
        ours = Ours()
        base = rss()
        reads, opens = [], []
        for _ in range(3):
            began = time.perf_counter()
            volume = read_volume(path)
            reads.append(time.perf_counter() - began)
            del volume
            opens.append(ours.open(path))
            ours.idle()
        import nibabel

        began = time.perf_counter()
        np.asarray(nibabel.load(path).dataobj).max()
        nib = time.perf_counter() - began
        table["opening, s (ours; our bare read; nibabel)"] = [min(opens), min(reads), nib]
        print("open", opens, reads, nib, flush=True)
        embed = ours.prompt(PROMPT)
        second = [ours.prompt(text) for text in (SECOND, PROMPT, SECOND)]
        first_visible, first_whole = embed
        visible = float(np.median([s[0] for s in second]))
        whole = float(np.median([s[1] for s in second]))
        table["prompt, s: first to visible slice, first over all slices, second to visible slice, second over all"] = [
            first_visible, first_whole, visible, whole,
        ]  # fmt: skip
        print(
            "prompt", first_visible, first_whole, visible, whole, first_whole / visible, first_whole / whole, flush=True
        )
        table["peak memory, GB: allowed, ours, at the start"] = [
            3 * megabytes / 1024 + 1.5, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, base,
        ]  # fmt: skip
        print("memory", table["peak memory, GB: allowed, ours, at the start"], flush=True)
        canonical = to_canonical(read_volume(path))
        plain = Plain(canonical.array, tuple(canonical.spacing_mm[::-1]))
        turns: dict[str, list[list[float]]] = {"slice step": [[], []], "paint": [[], []]}
        depth = given.size[2]
        for number in range(given.steps):
            z = depth // 4 + number % (depth // 2)
            for side, viewer in enumerate((ours.viewer, plain.viewer)):
                label = ours.controller.layers.labels[LABEL] if side == 0 else plain.label
                turns["slice step"][side].append(step(viewer, z))
                turns["paint"][side].append(paint(viewer, label, z))
        for name, (own, other) in turns.items():
            ratio = np.median(own) / np.median(other)
            table[name] = [spread(own), spread(other), ratio]
            print(name, "ours", spread(own), "plain", spread(other), f"ratio {ratio:.2f}", flush=True)
        ours.controller.label.saved()
        todo = list(range(depth))

        def plain_write() -> None:
            if todo:
                z = todo.pop()
                for mask in plain.masks[:2]:
                    mask[:, :, z] = 1
                for layer in plain.viewer.layers:
                    if "Labels" in type(layer).__name__:
                        layer.refresh(extent=False)

        timer = QTimer()
        timer.setInterval(10)
        timer.timeout.connect(plain_write)
        beats = {"plain napari, writing as many slices": heartbeat(timer.start, lambda: not todo)}
        timer.stop()

        def ask() -> None:
            ours.panel.prompt.setPlainText(PROMPT)
            ours.panel.prompt.submit()

        beats["prompting, label touched"] = heartbeat(ask, lambda: not ours.controller.worker.busy)
        ours.open(path)
        ours.idle()
        ours.prompt(SECOND)
        beats["prompting, label follows"] = heartbeat(ask, lambda: not ours.controller.worker.busy)
        beats["smoothing the whole label"] = heartbeat(
            lambda: ours.controller.correcting.apply("smooth"), lambda: not ours.controller.worker.busy
        )
        beats["threshold"] = heartbeat(
            lambda: ours.panel.threshold.setValue(0.7), lambda: not ours.controller.worker.busy
        )
        for name, gaps in beats.items():
            table[f"heartbeat, {name}: p99, worst, ms"] = [float(np.percentile(gaps, 99)), float(gaps.max())]
            print("heartbeat", name, f"p99 {np.percentile(gaps, 99):.0f} worst {gaps.max():.0f}", flush=True)
        for name, gaps in {"saving an accepted label": saving(ours, path, folder / "large-study")}.items():
            table[f"heartbeat, {name}: p99, worst, ms"] = [float(np.percentile(gaps, 99)), float(gaps.max())]
            print("heartbeat", name, f"p99 {np.percentile(gaps, 99):.0f} worst {gaps.max():.0f}", flush=True)
        ask()
        pump(lambda: ours.panel.progress.value() > 0)
        began = time.perf_counter()
        ours.controller.prompting.cancel()
        table["cancel, s"] = time.perf_counter() - began + ours.idle()
        table["label layers' types"] = sorted({str(m.dtype) for m in ours.controller.layers.masks.values()})
        in_3d = [three_dimensions(ours.viewer) for _ in range(2)][-1]
        plain.viewer.canvas.grid.enabled = False
        in_3d_plain = three_dimensions(plain.viewer)
        table["3-D view, s (ours, plain)"] = [in_3d, in_3d_plain, in_3d / in_3d_plain]
        print("3-D", in_3d, in_3d_plain, in_3d / in_3d_plain, flush=True)
        plain.viewer.close()
        table["rounds: number, GB, threads, Qt objects"] = rounds(ours, given.rounds, folder / "study")
        ours.viewer.close()
    if given.json:
        given.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
