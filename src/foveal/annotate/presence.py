"""Whether the images of a project are still there, and still those that were annotated."""

import os
from typing import NamedTuple

from foveal.features.unchanged import changed_at, changed_uris
from foveal.images.imageset import ImageSet

_PRECISION_S = 1e-3  # of times in an image set


class ImagesNow(NamedTuple):
    """The uris of images that are gone, and of those that are other ones by now; their annotations are kept."""

    gone: tuple[str, ...]
    changed: tuple[str, ...]


def images_now(images: ImageSet, *, since: float) -> ImagesNow:
    """Compare images with what their set says of them.

    Size and time of every file are looked at, without opening any; where these differ and the set has sha256, the bytes
    decide. Of images in tar and Parquet files it is the file that counts: gone, or changed since the project was made.

    Args:
        images: the set of the project.
        since: when the project was made, seconds since 1970.
    """
    columns = {name: images.rows.column(name).to_pylist() for name in ("uri", "bytes", "mtime")}
    known = images.rows.column("sha256").to_pylist() if "sha256" in images.rows.column_names else [None] * len(images)
    gone, suspect, times = [], [], {}  # type: ignore[var-annotated]
    for row, (uri, num_bytes, mtime) in enumerate(zip(*columns.values(), strict=True)):
        try:
            status = os.stat(images.root / uri)
        except OSError:
            changed = changed_at(images, row, times)  # 0 where neither a file nor a shard is there
            if changed == 0:
                gone.append(uri)
            elif changed > since:
                suspect.append(row)
            continue
        late = mtime is not None and abs(status.st_mtime - mtime.timestamp()) > _PRECISION_S
        if status.st_size != num_bytes or late:
            suspect.append(row)
    unknown = [images.uri(row) for row in suspect if known[row] is None]
    told = [row for row in suspect if known[row] is not None]
    differing = set(unknown) | set(changed_uris(images, told, [known[row] for row in told]))
    return ImagesNow(tuple(gone), tuple(uri for row in suspect if (uri := images.uri(row)) in differing))
