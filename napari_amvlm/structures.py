"""Which structure is being labelled: chosen, named by a prompt, or made on the spot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_amvlm.layers import LABEL

if TYPE_CHECKING:
    from amvlm.store import LabelStore
    from napari_amvlm.controller import Controller


class Structures:
    """The structures of the open study."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def exists(self, name: str) -> bool:
        """True for a structure of the open study, as it is now."""
        store = self._controller.store
        return store is not None and name in [structure.name for structure in store.structures()]

    def choose(self, name: str) -> None:
        """Judge another structure of the open case; the one before becomes an outline."""
        controller, store, layers = self._controller, self._controller.store, self._controller.layers
        if store is None or layers is None or layers.opened.case is None or name == controller.structure:
            return
        controller.opening.leave()
        opened, case = layers.opened, layers.opened.case
        if controller.structure:
            layers.keep_as_other(controller.structure, layers.masks[LABEL].copy(order="K"))
        layers.others.pop(name, None)
        controller.workspace.choose_structure(name)
        controller.withdraw_offer()

        def show(found: tuple[Any, bool]) -> None:
            label, draft = found
            layers.clear_masks()
            layers.was_prompted = False
            controller.draw_outlines()
            controller.label.write(label if label is not None else np.zeros_like(layers.masks[LABEL]))
            controller.label.begin(label)
            if not controller.label.put_back() and draft:
                controller.label.offer_to_discard()
            controller.refresh_lists()
            controller.label.measure_soon()

        controller.submit(
            lambda: controller.engine.label_of(store, case, name, opened.volume), on_result=show, owner=opened,
            text="Opening …",
        )  # fmt: skip

    def choose_named_in(self, prompt: str) -> None:
        """The label follows the words: a mask of one structure must not be accepted as another's."""
        if named := self.named_in(prompt):
            self.choose(named)

    def named_in(self, prompt: str) -> str:
        """The structure of the study that a prompt names, the only one where there is but one, or ""."""
        store, chosen = self._controller.store, self._controller.structure
        structures = store.structures() if store is not None else []
        named = [structure.name for structure in structures if structure.named_in(prompt)]
        if not named and len(structures) == 1:
            named = [structures[0].name]
        return chosen if chosen in named else max(named, key=len, default="")

    def of_line(self, prompt: str) -> str:
        """The structure of one line of several, made on the spot in a study and called by the prompt; "" if refused."""
        store = self._controller.store
        if store is None:
            return prompt
        if named := self.named_in(prompt):
            return named
        name = " ".join(prompt.split())[:60]
        return name if self._make(name, prompt) else ""

    def add(self, name: str) -> None:
        """Add a structure to the study and judge it; strokes that have none become its own."""
        if self._controller.label.nameless:
            self.adopt(name)
            return
        cleaned = " ".join(name.split())
        if self._make(cleaned, cleaned):
            self.choose(cleaned)
            if self._controller.structure != cleaned:  # no case is open
                self._controller.workspace.choose_structure(cleaned)
            self._controller.refresh_lists()

    def adopt(self, name: str) -> bool:
        """What is on screen becomes the label of a structure of this name; False where that cannot be."""
        controller = self._controller
        if not self.make_for_strokes(name):
            return False
        controller.workspace.choose_structure(" ".join(name.split()))
        controller.refresh_lists()
        return True

    def make_for_strokes(self, name: str) -> bool:
        """Add a structure for strokes that have none, unless it has a label of its own in the open case."""
        controller, store = self._controller, self._controller.store
        cleaned = " ".join(name.split())
        if store is not None and store.state(controller.open_case_id, cleaned) != "unknown":
            controller.fail(f"{cleaned} has a label of its own in this scan. Choose another name for what you painted.")
            return False
        return self._make(cleaned, cleaned)

    def _make(self, name: str, prompt: str) -> bool:
        controller, store = self._controller, self._controller.store

        def make(store: LabelStore) -> bool:
            store.add_structure(name, prompts=[prompt])
            return True

        if store is None or not controller.guard(lambda: make(store)):
            return False
        if controller.layers is not None:
            controller.layers.opened.colours.update({s.name: s.colour for s in store.structures()})
        return True
