"""Image sets whose masks lie beside them, as annotation projects save them."""

from pathlib import Path
from typing import NamedTuple

from foveal.errors import ImageSetError
from foveal.features.labels import split_by_column
from foveal.images.imageset import CARD_NAME, ImageSet
from foveal.tasks.samples import Pair


class MaskedSet(NamedTuple):
    """Pictures with masks; no test part where the set names none."""

    train: list[Pair]
    test: list[Pair]


def find_masked_set(folder: Path) -> MaskedSet | None:
    """Return the pictures and masks of an image set with the column mask_uri; None for any other folder.

    The masks are files below the folder of the set, the pictures files below its root. The column split, of "train" and
    "test", tells the parts.

    Raises:
        ImageSetError: an image without a mask, or one within a tar or Parquet file.
    """
    if not (folder / CARD_NAME).is_file():
        return None
    images = ImageSet.open(folder)
    if "mask_uri" not in images.rows.column_names:
        raise ImageSetError(f"{folder} is an image set without masks; save one with the column mask_uri")
    parts = split_by_column(images) or (images, images.subset([]))
    return MaskedSet(*(_pairs(folder, part) for part in parts))


def _pairs(folder: Path, images: ImageSet) -> list[Pair]:
    found = []
    for uri, mask_uri in zip(*(images.rows.column(name).to_pylist() for name in ("uri", "mask_uri")), strict=True):
        if mask_uri is None:
            raise ImageSetError(f"{uri} of {folder} has no mask; give every image one, or leave it out of the set")
        if "#" in uri and not (images.root / uri).is_file():
            raise ImageSetError(
                f"{uri} lies within a tar or Parquet file, and pictures with masks are read as files; unpack the set"
            )
        found.append(Pair(images.root / uri, folder / mask_uri))
    return found
