"""Pictures with every kind of annotation, for formats."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, Box, Mask

SIZES = {"a.png": (7, 5), "deep/b.png": (11, 9)}  # width, height


def blob(seed: int, uri: str) -> Mask:
    width, height = SIZES[uri]
    pixels = np.random.default_rng(seed).random((height, width)) < 0.4
    pixels[2, 3] = True
    return Mask.of(pixels)


@pytest.fixture
def annotated() -> AnnotatedSet:
    """Masks with parts and holes, boxes, labels; every state and source; scores and tracks."""
    images = tuple(AnnotatedImage(uri, *size) for uri, size in SIZES.items())
    annotations = (
        Annotation("a.png", "cat", blob(1, "a.png"), source="imported"),
        Annotation("a.png", "big dog", None, Box(1.25, 0, 3.5, 4), source="user", score=0.75),
        Annotation("a.png", "cat"),
        Annotation("deep/b.png", "cat", blob(2, "deep/b.png"), source="propagated", score=0.5, track="t7"),
        Annotation("deep/b.png", "big dog", blob(3, "deep/b.png"), state="unsure", source="propagated", score=0.25),
        Annotation("deep/b.png", "big dog", state="rejected", source="propagated", score=0.125),
        Annotation("deep/b.png", "cat", None, Box(0, 1, 2, 3), state="proposed", source="propagated"),
    )
    return AnnotatedSet(("cat", "big dog"), images, annotations)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """The folder of those pictures."""
    folder = tmp_path / "photographs"
    for uri, size in SIZES.items():
        (folder / uri).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 30, 20)).save(folder / uri)
    return folder
