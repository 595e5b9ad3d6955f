"""Whether the images are still those that a feature store was made of, and the store what was written."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foveal.errors import BadImageError, FovealError, ImageSetError
from foveal.features import patch_pca
from foveal.features.batches import Progress, map_ahead
from foveal.features.store import DONE, ROWS, StoreCard, read_done, shard_folder
from foveal.files import sha256_of
from foveal.images.imageset import ImageSet

UNREADABLE = "unreadable"  # the reason of a file that its disk did not give, which may pass


def check_unchanged_since(store: Path, card: StoreCard, images: ImageSet, shards: Sequence[int]) -> None:
    """Refuse images that changed after their shard was finished.

    Quick: only files whose contents or place in the file system are newer than their shard are read and compared by
    sha256. `verify_store` reads all.

    Raises:
        ImageSetError: names the files.
    """
    times: dict[Path, float] = {}
    for shard in shards:
        finished = (shard_folder(store, shard) / DONE).stat().st_mtime
        newer = [row for row in card.rows_of(shard) if changed_at(images, row, times) >= finished]
        if newer:
            _refuse(store, shard, list(_changed(images, _sidecar(store, shard), newer)))


def retriable_shards(store: Path, images: ImageSet, shards: Sequence[int]) -> list[int]:
    """Return those finished shards that hold an image which could not be read from its disk then, and can be now."""
    found = []
    for shard in shards:
        done = read_done(store, shard)
        if done is None or UNREADABLE not in done["bad"]:
            continue
        sidecar = _sidecar(store, shard)
        lost = sidecar.filter(pc.equal(sidecar.column("reason"), UNREADABLE)).column("row").to_pylist()
        if any(is_readable(images, row) for row in lost):
            found.append(shard)
    return found


def is_readable(images: ImageSet, row: int) -> bool:
    """Tell whether an image's bytes can be read now."""
    try:
        images.read(row)
    except BadImageError:
        return False
    return True


def verify_store(
    store: Path, card: StoreCard, images: ImageSet, *, progress: Progress | None = None, num_threads: int = 2
) -> int:
    """Compare every file of every finished shard, and every image that it was made of, with the sha256 written down.

    Returns:
        The number of images compared.

    Raises:
        FovealError: a file of the store is damaged or missing; an image has changed. The message names them.
    """
    _verify_pca(store)
    num_done = 0
    for shard in range(card.num_shards):
        done = read_done(store, shard)
        if done is None:
            continue
        folder = shard_folder(store, shard)
        for name, said in done["files"].items():
            try:
                same = sha256_of(folder / name) == said["sha256"]
            except OSError:
                same = False
            if not same:
                raise FovealError(f"{folder / name} is damaged; remove {folder} and run the same command to redo it")
        changed = list(_changed(images, _sidecar(store, shard), card.rows_of(shard), num_threads=num_threads))
        _refuse(store, shard, changed)
        num_done += len(card.rows_of(shard))
        if progress:
            progress(num_done, card.num_images)
    return num_done


def _verify_pca(store: Path) -> None:
    folder = store / patch_pca.FOLDER
    if not folder.is_dir():
        return
    for name, said in patch_pca.read_card(folder)["sha256"].items():
        try:
            same = sha256_of(folder / name) == said
        except OSError:
            same = False
        if not same:
            raise FovealError(f"{folder / name} is damaged; restore it, or extract into a new store")


def _changed(images: ImageSet, sidecar: pa.Table, rows: Sequence[int], *, num_threads: int = 2) -> Iterator[str]:
    first = sidecar.column("row")[0].as_py()
    written = sidecar.column("sha256").to_pylist()
    return changed_uris(images, rows, [written[row - first] for row in rows], num_threads=num_threads)


def changed_uris(
    images: ImageSet, rows: Sequence[int], sha256s: Sequence[str | None], *, num_threads: int = 2
) -> Iterator[str]:
    """Yield the uris among `rows` whose bytes no longer have the sha256 that was written down for each.

    A file that could not be read then has none and cannot have changed.
    """

    def differs(row: int, written: str | None) -> bool:
        if written is None:
            return False
        try:
            return hashlib.sha256(images.read(row)).hexdigest() != written
        except BadImageError:
            return True

    pairs = zip(rows, sha256s, strict=True)
    for row, different in zip(rows, map_ahead(lambda pair: differs(*pair), pairs, num_threads, ahead=64), strict=True):
        if different:
            yield images.uri(row)


def check_unchanged(images: ImageSet, row: int, *, num_bytes: int, sha256: str) -> None:
    """Refuse an image whose bytes are not those that the image set lists.

    Raises:
        ImageSetError: the size or the sha256 that the image set has for it is another.
    """
    listed = {"bytes": num_bytes, "sha256": sha256}
    for name, seen in listed.items():
        if name not in images.rows.column_names:
            continue
        said = images.rows.column(name)[row].as_py()
        if said is not None and said != seen:
            raise ImageSetError(
                f"{images.uri(row)} has changed: its {name} is {seen}, and the image set says {said}; "
                "restore the file, or make the image set again and begin a new --out"
            )


def _refuse(store: Path, shard: int, changed: list[str]) -> None:
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ImageSetError(
            f"images have changed since shard {shard} of {store} was extracted: {', '.join(changed[:5])}{more}; "
            f"restore them, or remove {shard_folder(store, shard)} to extract its images as they are now"
        )


def _sidecar(store: Path, shard: int) -> pa.Table:
    path = shard_folder(store, shard) / ROWS
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise FovealError(f"{path} is damaged ({error}); remove {path.parent} and run the same command") from error


def changed_at(images: ImageSet, row: int, times: dict[Path, float]) -> float:
    """Return when the file that holds an image last changed, contents or place; 0 where it is gone: nothing to redo."""
    uri = images.uri(row)
    container, mark, _ = uri.rpartition("#")
    path = images.root / (container if mark and container.lower().endswith((".tar", ".parquet")) else uri)
    if path not in times:
        try:
            status = os.stat(path)
            times[path] = max(status.st_mtime, status.st_ctime)
        except OSError:
            times[path] = 0.0
    return times[path]
