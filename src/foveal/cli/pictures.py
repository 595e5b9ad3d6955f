"""What the verbs that draw share: which images go in, and the picture that comes out."""

import glob
import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from foveal.cli.terminal import check_file_target, progress_of, write_file
from foveal.errors import BadImageError, FovealError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

logger = logging.getLogger(__name__)

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SOURCES = "image files, patterns of them, folders, .txt lists, tar or Parquet shards, image sets"
_SETS = (".txt", ".tar", ".parquet")


class _Entry(NamedTuple):
    name: str
    uri: str
    read: "Callable[..., np.ndarray]"  # takes channels
    named: bool  # by the user, so that it must be readable


class Listing(NamedTuple):
    """Images that were found and not read yet, and the words for where."""

    entries: list[_Entry]
    where: str


def check_picture_target(out: Path) -> None:
    """Raise FovealError, before any long work, when a picture cannot be written there."""
    check_file_target(out)
    if out.suffix.lower() not in FORMATS:
        raise FovealError(f"--out {out}: cannot write '{out.suffix}'; choose a name with {', '.join(FORMATS)}")


def write_picture(out: Path, picture: "Image.Image") -> None:
    """Write a picture in the format of its name."""
    data = io.BytesIO()
    try:
        picture.save(data, FORMATS[out.suffix.lower()])
    except (OSError, ValueError) as error:  # JPEG and WebP have a largest size
        raise FovealError(
            f"a picture of {picture.width} x {picture.height} pixels cannot be written as {out.suffix} ({error}); "
            "choose .png, or fewer images"
        ) from error
    write_file(out, data.getvalue())


def read_picture(path: Path, *, channels: int) -> "np.ndarray":
    """Return the pixels of an image file; the error of one that cannot be read names it."""
    from foveal.images.preprocess import to_array

    try:
        return to_array(path, channels=channels)
    except BadImageError as error:
        raise BadImageError(error.reason, f"{path}: {error}") from error


def list_pictures(sources: Sequence[str], *, max_images: int) -> Listing:
    """List the images of some sources, before a model is loaded for them.

    Args:
        sources: image files, patterns of them, and whatever `ImageSet.open` takes.
        max_images: of more, this many are taken, evenly spread, and it is said on stderr.

    Raises:
        FovealError: a source that is missing or holds no image.
    """
    entries = [entry for source in sources for entry in _entries(source)]
    if len(entries) > max_images:
        typer.echo(f"{len(entries)} images; {max_images} of them, evenly spread, are shown (--max-images)", err=True)
        step = (len(entries) - 1) / max(max_images - 1, 1)
        entries = [entries[round(number * step)] for number in range(max_images)]
    return Listing(entries, ", ".join(sources))


def read_pictures(listing: Listing, *, channels: int) -> "Iterator[tuple[str, np.ndarray]]":
    """Read listed images one at a time, name and pixels, in the channels of a model; see `read_entries`."""
    for entry, pixels in read_entries(listing, channels=channels):
        yield entry.name, pixels


def read_entries(listing: Listing, *, channels: int) -> "Iterator[tuple[_Entry, np.ndarray]]":
    """Read listed images one at a time, in the channels of a model.

    Raises:
        FovealError: an image that was named and cannot be read, or none of a set; other bad images of sets are skipped
            with a warning.
    """
    entries, where = listing
    num_good = 0
    with progress_of("images") as progress:
        for number, entry in enumerate(entries):
            try:
                pixels = entry.read(channels=channels)
            except BadImageError as error:
                if entry.named:
                    raise
                logger.warning("skipped: %s", error)
                continue
            yield entry, pixels
            num_good += 1
            progress(number + 1, len(entries))
    if not num_good:
        raise FovealError(f"none of the {len(entries)} images of {where} can be read; check the source")


def _entries(source: str) -> list[_Entry]:
    from foveal.images.imageset import ImageSet
    from foveal.images.sources import IMAGE_SUFFIXES

    path = Path(source)
    if path.is_file() and path.suffix.lower() not in _SETS:
        return [_Entry(path.name, source, partial(read_picture, path), named=True)]
    if not path.exists():
        found = sorted(Path(name) for name in glob.glob(source, recursive=True))
        files = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
        if files:
            return [_Entry(file.name, str(file), partial(read_picture, file), named=False) for file in files]
        if not re.search(r"[*?{\[]", source):
            raise FovealError(f"{source} does not exist; give {SOURCES}")
    images = ImageSet.open(source)
    # Below a folder, the path from here: the same names in several folders are then told apart.
    start = path if path.is_dir() and images.root == Path(os.path.abspath(path)) else Path()
    uris = images.rows.column("uri").to_pylist()
    return [
        _Entry(Path(uri).name, str(start / uri), partial(images.decode, index), named=False)
        for index, uri in enumerate(uris)
    ]
