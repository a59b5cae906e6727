"""Widgets: pictures that a reader can move. Each holds a still picture for where no kernel runs.

All work by mouse and by keyboard, keep their size while they change, and ``close()`` lets go of
everything that they hold.
"""

from srlab.viz.compare import Compare, Lens, before_after
from srlab.viz.explorers import CropPicker, DegradationExplorer, TapExplorer
from srlab.viz.live import TrainingPanel, UploadBox

__all__ = [
    "Compare",
    "CropPicker",
    "DegradationExplorer",
    "Lens",
    "TapExplorer",
    "TrainingPanel",
    "UploadBox",
    "before_after",
]
