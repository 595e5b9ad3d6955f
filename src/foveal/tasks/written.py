"""What a dense head answered, as files."""

import io

import numpy as np
from PIL import Image

from foveal.features.pictures import heat
from foveal.images.masks import encode_ids
from foveal.tasks.head import HeadCard

_MOST = 65_535


def written_answer(answer: np.ndarray, card: HeadCard, *, unit: float = 0.001) -> dict[str, bytes]:
    """Return the files of an answer by their endings.

    Args:
        answer: of `Predictor.predict`.
        card: of the head.
        unit: of depth: metres of the value 1. Relative depth, whose head has no range, is spread over 0..65535.

    Returns:
        For masks ".png" with a palette; for depth ".png", 16-bit, and ".colour.png", from the nearest to the farthest.
    """
    if card.task == "segmentation":
        return {".png": encode_ids(answer)}
    metric = card.settings.get("max_depth") is not None
    low, high = float(answer.min()), float(answer.max())
    scaled = answer / unit if metric else (answer - low) / max(high - low, 1e-9) * _MOST
    values = np.clip(np.rint(scaled), 0, _MOST).astype(np.uint16)
    picture = heat(answer, low=low, high=max(high, low + 1e-6))
    return {".png": _png(values), ".colour.png": _png(picture)}


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
