"""Strokes that have no place in the study yet: their structure has no name, or saving failed. They are never dropped.

They wait in memory, one mask for each case and structure, until the worker has saved them. Where that fails, they are
tried again with every autosave and when the window closes, and come back on screen when the case is opened again.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from amvlm.imaging import Volume
from amvlm.store import Case, LabelStore
from napari_amvlm.engine import Mask
from napari_amvlm.jobs import Job

if TYPE_CHECKING:
    from napari_amvlm.controller import Controller

UNNAMED = "unnamed structure"
"""What strokes belong to that nobody named before the window closed."""


@dataclass(frozen=True, eq=False)
class Strokes:
    """A label with a hand's strokes (canonical array), and what it belongs to; "" is no structure yet."""

    store: LabelStore
    case: Case
    structure: str
    label: Mask

    @property
    def grid(self) -> Volume:
        """The case's grid, without voxels of its own."""
        nothing = np.broadcast_to(np.uint8(0), self.case.shape)
        return Volume(nothing, self.case.affine, self.case.sides_known, self.case.planar)

    def of(self, structure: str) -> Strokes:
        """The same strokes as those of another structure."""
        return replace(self, structure=structure)

    def has_structure(self) -> bool:
        """False where the study knows no structure of that name."""
        return bool(self.structure) and self.structure in [known.name for known in self.store.structures()]


class Unsaved:
    """Keeps strokes and asks for the name that they lack."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._kept: dict[tuple[str, str, str], Strokes] = {}
        self._asked: set[tuple[str, str]] = set()
        self._asking = False
        self._writing = threading.Lock()

    def keep(self, strokes: Strokes) -> None:
        """Hold on to strokes until they are saved."""
        key = (strokes.store.store_id, strokes.case.case_id, strokes.structure)
        self._kept[key] = replace(strokes, label=strokes.label.copy(order="K"))

    def take(self, case_id: str, structure: str) -> Mask | None:
        """Give back what was kept of a case of the open study, if anything."""
        store = self._controller.store
        strokes = self._kept.pop((store.store_id, case_id, structure), None) if store is not None else None
        return None if strokes is None else strokes.label

    def save(self) -> None:
        """Save what is kept and has a structure, in the worker; what cannot be saved stays for the next try."""
        for key, strokes in self._kept.items():
            if strokes.structure:
                self._controller.worker.submit(self._try(key, strokes))

    def _try(self, key: tuple[str, str, str], strokes: Strokes) -> Job:
        def work() -> Iterator[bool]:
            with self._writing:
                if self._kept.get(key) is strokes:  # newer ones of the same label were not saved meanwhile
                    yield self._write(strokes)

        def saved(_: bool) -> None:
            if self._kept.get(key) is strokes:
                del self._kept[key]
            controller.overview.show_state()

        controller = self._controller
        return Job(work, on_result=saved, on_error=lambda text: controller.fail(text, once=True))

    def save_now(self, strokes: Strokes) -> None:
        """The same at once, without the worker."""
        self.keep(strokes)
        with self._writing:
            self._write(strokes)
        self.take(strokes.case.case_id, strokes.structure)

    def _write(self, strokes: Strokes) -> bool:
        """Make strokes a draft of their structure."""
        save = self._controller.engine.save_draft
        return all(save(strokes.store, strokes.case, strokes.structure, strokes.label, strokes.grid))

    # -- the missing name -------------------------------------------------------------------------------------

    def ask_once(self) -> None:
        """Ask when the first stroke was made, and not again while the case stays open."""
        store, case_id = self._controller.store, self._controller.open_case_id
        if store is not None and self._controller.label.nameless and (store.store_id, case_id) not in self._asked:
            self._asked.add((store.store_id, case_id))
            if not self.ask():
                self._offer("What you paint is kept in this window until its structure has a name.")

    def ask(self) -> bool:
        """Ask which structure was painted; True once what is on screen belongs to one."""
        controller = self._controller
        if self._asking:
            return False
        self._asking = True
        try:
            name = controller.studies.ask_for_name("What are you outlining? Name it, for example: liver")
        finally:
            self._asking = False
        return bool(name) and controller.structures.adopt(name)

    def _offer(self, text: str) -> None:
        self._controller.offer(text, "Name it…", "Name the structure that you painted", self._named_later)

    def offer_kept(self, case_id: str) -> None:
        """Strokes without a structure wait for a case that is shown with one: offer to give them theirs."""
        store = self._controller.store
        if store is not None and (store.store_id, case_id, "") in self._kept:
            self._offer("What you painted here before belongs to no structure yet.")

    def _named_later(self) -> None:
        controller = self._controller
        store, case_id = controller.store, controller.open_case_id
        if store is None or controller.label.nameless or (store.store_id, case_id, "") not in self._kept:
            self.ask()
            return
        name = controller.studies.ask_for_name("What did you outline? Name it, for example: liver")
        if name and controller.structures.make_for_strokes(name):
            strokes = self._kept.pop((store.store_id, case_id, ""))
            self.keep(strokes.of(name))
            controller.structures.choose(name)
            controller.refresh_lists()
        else:
            self.offer_kept(case_id)

    def close(self) -> None:
        """The window closes: what has no name yet becomes a draft of its own."""
        for strokes in self._kept.values():
            self._controller.guard(partial(self._save_somewhere, strokes))
        self._kept.clear()

    def _save_somewhere(self, strokes: Strokes) -> None:
        numbered = (f"{UNNAMED} {number}" if number > 1 else UNNAMED for number in itertools.count(1))
        store, case_id = strokes.store, strokes.case.case_id
        name = strokes.structure or next(name for name in numbered if store.state(case_id, name) == "unknown")
        named = strokes.of(name)
        if not named.has_structure():
            store.add_structure(name, prompts=[name])
        with self._writing:
            self._write(named)
