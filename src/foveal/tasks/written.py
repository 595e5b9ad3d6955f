"""What a dense head answered, as files."""

import io
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.pictures import heat
from foveal.files import staging_of, sync
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


def kept_probabilities(bands: Iterable[Tensor], path: Path, *, shape: tuple[int, int]) -> Iterator[Tensor]:
    """Pass bands (K, rows, W) of probabilities on and write them to a file, which is there once all have passed.

    Args:
        bands: from the top, of all rows.
        path: .npy, (K, H, W) float16: 2 bytes a class and pixel.
        shape: H and W.

    Raises:
        FovealError: it cannot be written.
    """
    staging = staging_of(path)
    file, top = None, 0
    try:
        for band in bands:
            if file is None:
                whole = (len(band), *shape)
                _check_room(path, 2 * len(band) * shape[0] * shape[1])
                file = np.lib.format.open_memmap(staging, mode="w+", dtype=np.float16, shape=whole)
            file[:, top : top + band.shape[1]] = band.numpy()
            top += band.shape[1]
            yield band
        if file is not None:
            file.flush()
            sync(staging)
            staging.replace(path)
    except OSError as error:
        raise FovealError(f"{path} cannot be written ({error}); free space or choose another place") from error
    finally:
        staging.unlink(missing_ok=True)


def _check_room(path: Path, num_bytes: int) -> None:
    """Refuse a file larger than what is free: a mapped file on a full disk would end the process."""
    free = shutil.disk_usage(path.parent).free
    if num_bytes > free:
        raise FovealError(
            f"{path} would take {num_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; free space, or leave the "
            "probabilities out"
        )


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
