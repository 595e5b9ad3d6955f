"""Pictures made on the spot, and a way to write them in any format."""

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.images import jpeg


@pytest.fixture
def photo() -> np.ndarray:
    """A smooth (33, 47, 3) colour picture: JPEG keeps it nearly as it is, and no two of its corners are alike."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((47, 33), Image.Resampling.BICUBIC))


@pytest.fixture
def encode() -> Callable[..., bytes]:
    def encode(picture: np.ndarray | Image.Image, format_name: str, **options: Any) -> bytes:
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        file = io.BytesIO()
        image.save(file, format_name, **options)
        return file.getvalue()

    return encode


@pytest.fixture(params=["simplejpeg", "pillow"])
def each_jpeg_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test with simplejpeg, and again as if it were not installed."""
    if request.param == "pillow":
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    jpeg._simplejpeg.cache_clear()
    yield request.param
    jpeg._simplejpeg.cache_clear()
