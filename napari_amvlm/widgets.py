"""What the Plugins menu opens: each widget is a panel wired to its viewer's one controller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_amvlm.controller import Controller
from napari_amvlm.panels.planes import PlanesPanel
from napari_amvlm.panels.prompt import PromptPanel
from napari_amvlm.panels.review import ReviewPanel
from napari_amvlm.panels.train import TrainPanel

if TYPE_CHECKING:
    import napari


class SegmentWithText(PromptPanel):
    """Plugins ▸ AMVLM ▸ Segment with text."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.controller = Controller.of(napari_viewer)
        self.controller.attach_prompt_panel(self)


class ReviewPseudoLabels(ReviewPanel):
    """Plugins ▸ AMVLM ▸ Review pseudo-labels."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.controller = Controller.of(napari_viewer)
        self.controller.attach_review_panel(self)


class Train(TrainPanel):
    """Plugins ▸ AMVLM ▸ Train."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.controller = Controller.of(napari_viewer)
        self.controller.attach_train_panel(self)


class OtherPlanes(PlanesPanel):
    """Plugins ▸ AMVLM ▸ Other planes."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.controller = Controller.of(napari_viewer)
        self.controller.companions.attach(self)
