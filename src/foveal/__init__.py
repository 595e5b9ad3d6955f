"""foveal: from unlabelled images to a frozen vision backbone that works."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.export.vision_tower import VisionTower
    from foveal.features.extract import Features, Model, load
    from foveal.tasks.head import load_head

    __version__: str

__all__ = ["Features", "Model", "VisionTower", "__version__", "load", "load_head"]


def __getattr__(name: str) -> Any:
    """Import a part of the Python API when it is first used, so that `import foveal` does not wait for torch."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("foveal")
    if name in ("Features", "Model", "load"):
        return getattr(importlib.import_module("foveal.features.extract"), name)
    if name == "load_head":
        return importlib.import_module("foveal.tasks.head").load_head
    if name == "VisionTower":
        return importlib.import_module("foveal.export.vision_tower").VisionTower
    raise AttributeError(f"module 'foveal' has no attribute '{name}'")
