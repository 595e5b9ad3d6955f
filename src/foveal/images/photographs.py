"""The photographs that scikit-image and scikit-learn carry: real images where the user gives none."""

import importlib.util
from pathlib import Path

import numpy as np

from foveal.errors import FovealError
from foveal.images.decode import decode

# Package, folder, file names.
_PACKAGED = (
    (
        "skimage",
        "data",
        "astronaut.png brick.png camera.png cell.png chelsea.png coffee.png coins.png grass.png gravel.png "
        "hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg",
    ),
    ("sklearn", "datasets/images", "china.jpg flower.jpg"),
)


def packaged_photographs() -> dict[str, np.ndarray]:
    """Return the photographs that scikit-image and scikit-learn carry: name -> (H, W, 3) uint8.

    Raises:
        FovealError: one of the two packages is not installed.
    """
    found = {}
    for package, folder, names in _PACKAGED:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise FovealError(
                f"no images were given, and the photographs of {package} are not there; "
                "give --images DIR or run pip install 'foveal[demo]'"
            )
        for name in names.split():
            path = Path(spec.origin).parent / folder / name
            if path.is_file():
                found[path.stem] = decode(path.read_bytes())
    return found
