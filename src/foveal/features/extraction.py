"""Extraction of an image set into a feature store: open or continue it, extract shards, verify, sum up."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from foveal.errors import BadImageError, FovealError, ImageSetError
from foveal.features import patch_pca
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.shard import extract_shard
from foveal.features.stamp import StoreSettings, check_same_stamp, make_stamp
from foveal.features.store import (
    BAD_IMAGES,
    CARD,
    ENGINE,
    SHARDS,
    SUMMARY,
    StoreCard,
    read_card,
    read_done,
    shard_folder,
)
from foveal.features.tokens import Token, array_names, token_shape
from foveal.features.unchanged import check_unchanged_since, retriable_shards
from foveal.files import remove_abandoned, staging_of, write_atomically, write_new
from foveal.images.imageset import ImageSet
from foveal.images.ledger import listed, max_bad_of
from foveal.images.preprocess import Preprocess

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extraction:
    """A store that is ready to take shards, with what fills it; made by `open_extraction`.

    Attributes:
        store: the folder.
        card: of the store.
        model: the model of its stamp.
        images: the set of its card.
        preprocess: of its stamp.
    """

    store: Path
    card: StoreCard
    model: Model
    images: ImageSet
    preprocess: Preprocess

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not finished, ascending."""
        return [shard for shard in range(self.card.num_shards) if read_done(self.store, shard) is None]

    def reopen(self, shards: Sequence[int]) -> None:
        """Discard those of finished shards whose unreadable images can be read now, so that they are done again."""
        for shard in retriable_shards(self.store, self.images, shards):
            logger.warning("shard %d of %s: unreadable images can be read now; it is done again", shard, self.store)
            folder = shard_folder(self.store, shard)
            discarded = staging_of(folder)
            try:
                (self.store / SUMMARY).unlink(missing_ok=True)
                with suppress(FileNotFoundError):  # another process discarded it first
                    folder.rename(discarded)
                    shutil.rmtree(discarded)
            except OSError as error:
                raise FovealError(f"{folder} cannot be removed ({error}); repair the store's disk") from error

    def run(
        self,
        shards: Sequence[int] | None = None,
        *,
        num_threads: int = 2,
        max_bad_share: float = 0.01,
        progress: Progress | None = None,
    ) -> dict[str, Any] | None:
        """Extract shards, passing over the finished ones, and write the summary once all of the store are there.

        Args:
            shards: their numbers; None is all.
            num_threads: decoding threads.
            max_bad_share: of the whole set, beyond which bad images stop the extraction.
            progress: called with (images done, images in these shards), finished shards included.

        Returns:
            The summary, or None while shards are missing.

        Raises:
            ImageSetError: too many bad images, or files that changed.
            FovealError: see `extract_shard`.
        """
        shards = range(self.card.num_shards) if shards is None else shards
        self.reopen(shards)
        total = sum(len(self.card.rows_of(shard)) for shard in shards)
        missing = set(self.missing())
        num_done = sum(len(self.card.rows_of(shard)) for shard in shards if shard not in missing)
        bad = bad_images(self.store, self.card)
        self.check_bad(bad, max_bad_share)
        for shard in shards:
            if shard not in missing:
                continue
            self.extract_shard(
                shard,
                num_threads=num_threads,
                max_bad_share=max_bad_share,
                progress=progress and _shifted(progress, num_done, total),
            )
            num_done += len(self.card.rows_of(shard))
            bad.update((read_done(self.store, shard) or {})["bad"])
            self.check_bad(bad, max_bad_share)
        return finish(self.store)

    def extract_shard(
        self, shard: int, *, num_threads: int, max_bad_share: float, progress: Callable[[int], None] | None = None
    ) -> None:
        """Extract one shard; see `foveal.features.shard.extract_shard`."""
        extract_shard(
            self.store,
            shard,
            card=self.card,
            model=self.model,
            images=self.images,
            preprocess=self.preprocess,
            num_threads=num_threads,
            max_bad_share=max_bad_share,
            progress=progress,
        )

    def check_bad(self, bad: Counter[str], max_bad_share: float) -> None:
        """Stop when the bad images of all shards together are too many for the set."""
        allowed = max_bad_of(self.card.num_images, max_bad_share)
        if bad.total() > allowed:
            raise ImageSetError(
                f"{bad.total()} of {self.card.num_images} images are bad ({listed(bad)}), allowed are {allowed} "
                f"(--max-bad-share {max_bad_share}); see {self.store / BAD_IMAGES}, and raise that share to go on"
            )


def open_extraction(
    store: str | Path,
    model: Model,
    images: ImageSet,
    settings: StoreSettings,
    *,
    progress: Progress | None = None,
) -> Extraction:
    """Start a store, or continue one of the same stamp and image set.

    A finished shard stays as it is; images that changed since are found by the time of their files and then by their
    sha256. Where a PCA is asked for, it is fitted here.

    Args:
        store: the folder; absent, empty, or a feature store.
        model: a loaded model.
        images: the set.
        settings: what to extract and how to store it.
        progress: of the fitting of the PCA.

    Raises:
        FovealError: the folder is something else, holds another stamp or image set, cannot be written, is too small, or
            the settings do not fit the model.
        ImageSetError: images of finished shards have changed.
    """
    store = check_target(store)
    settings.check(model.card)
    try:
        store.mkdir(parents=True, exist_ok=True)
        remove_abandoned(store)
        remove_abandoned(store / SHARDS)
        model = model.settle(
            images, layers=settings.layers, size=settings.size, fit=settings.fit, folder=store / ENGINE
        )
        if not (store / CARD).is_file():
            card = _new_card(model, images, settings)
            _check_space(store, card, card.num_images)
            write_new(store / CARD, card.to_json())  # where another process was faster, its card is compared below
        extraction = join_extraction(store, model, images, settings)
        card, missing = extraction.card, extraction.missing()
        check_unchanged_since(store, card, images, sorted(set(range(card.num_shards)).difference(missing)))
        _check_space(store, card, sum(len(card.rows_of(shard)) for shard in missing))
        if settings.pca is not None and not (store / patch_pca.FOLDER).is_dir():
            patch_pca.fit_patch_pca(
                store / patch_pca.FOLDER,
                model,
                images,
                num_components=settings.pca,
                layers=settings.layers,
                preprocess=extraction.preprocess,
                batch_size=settings.batch_size,
                progress=progress,
            )
    except OSError as error:
        raise FovealError(f"{store} cannot be written ({error}); free space or choose another place") from error
    return extraction


def join_extraction(store: Path, model: Model, images: ImageSet, settings: StoreSettings) -> Extraction:
    """Return the extraction of a store that is there already; the model must be settled.

    Raises:
        FovealError: no store, one of another stamp or image set, or one whose card gives other shapes.
    """
    card = read_card(store)
    check_same_stamp(card.stamp, make_stamp(model, settings), where=str(store))
    check_same_images(store, card, images)
    preprocess = model.preprocessing(size=settings.size, fit=settings.fit)
    grid = _first_grid(images, preprocess) if "patches" in settings.tokens else (0, 0)
    if card.shapes != (shapes := _shapes(model, settings, grid)):
        raise FovealError(
            f"{store / CARD} gives the shapes {card.shapes}, and its settings give {shapes}; restore the card, or "
            "extract into a new store"
        )
    return Extraction(store, card, model, images, preprocess)


def check_target(store: str | Path) -> Path:
    """Return the absolute path of a folder that can be, or become, a feature store; FovealError where it cannot."""
    store = Path(os.path.abspath(store))
    if not store.exists():
        return store
    if store.is_dir() and (store / CARD).is_file():
        read_card(store)
        return store
    if store.is_dir() and all(path.name == ENGINE or path.name.startswith(f".{CARD}.") for path in store.iterdir()):
        return store
    raise FovealError(f"{store} exists and is not a feature store; choose another place or remove it")


def finish(store: Path) -> dict[str, Any] | None:
    """Write and return the summary of a store whose shards are all there; None while some are missing.

    Returns:
        num_images, num_features, bad by reason, bytes, bytes_per_image, and by array min and mean of the cosine of the
        stored features to float32, over the first images of each shard.

    Raises:
        ImageSetError: not one image of the set could be read.
    """
    card = read_card(store)
    manifests = [read_done(store, shard) for shard in range(card.num_shards)]
    done = [manifest for manifest in manifests if manifest is not None]
    if len(done) < card.num_shards:
        return None
    bad = bad_images(store, card)
    num_features = sum(manifest["num_features"] for manifest in done)
    if not num_features:
        raise ImageSetError(f"none of the {card.num_images} images can be read ({listed(bad)}); check the source")
    total = sum(file["bytes"] for manifest in done for file in manifest["files"].values())
    measured = {name: [m["cosine"][name] for m in done if name in m["cosine"]] for name in card.shapes}
    summary = {
        "num_images": card.num_images,
        "num_features": num_features,
        "bad": dict(bad),
        "bytes": total,
        "bytes_per_image": card.bytes_per_image,
        "cosine": {
            name: {
                "min": min(found["min"] for found in values),
                "mean": round(sum(found["mean"] for found in values) / len(values), 8),
            }
            for name, values in measured.items()
        },
    }
    try:
        remove_abandoned(store / SHARDS)
        path = store / SUMMARY
        write_atomically(path, json.dumps(summary, indent=2) + "\n", staging=staging_of(path))
    except OSError as error:
        raise FovealError(f"{store} cannot be written ({error}); free space and run the same command again") from error
    return summary


def shards_of_part(part: str, num_shards: int) -> range:
    """Return the shards of part "i/n": i, i + n, i + 2 n and so on, i from 0; FovealError where it is no such thing."""
    number, slash, count = part.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise FovealError(f"--shard {part}; write i/n with i from 0 to n - 1, such as 0/8")
    return range(int(number), num_shards, int(count))


def _new_card(model: Model, images: ImageSet, settings: StoreSettings) -> StoreCard:
    stamp = make_stamp(model, settings)
    image_set = {"hash": images.hash, "num_images": len(images), "root": str(images.root)}
    grid = _first_grid(images, model.preprocessing(size=settings.size, fit=settings.fit))
    return StoreCard(stamp, image_set, _shapes(model, settings, grid), model.origin)


def _shapes(model: Model, settings: StoreSettings, grid: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of one image in each array, by name."""
    tokens = [token for token in get_args(Token) if token in settings.tokens]
    shapes = {}
    for name in array_names(tokens, settings.layers):
        token = name.partition(".")[0]
        shape = token_shape(token, model.card.backbone, grid=grid)
        shapes[name] = (*shape[:-1], settings.pca) if token == "patches" and settings.pca else shape
    return shapes


def _first_grid(images: ImageSet, preprocess: Preprocess) -> tuple[int, int]:
    """Return the patches of the first image of the set that can be read; ImageSetError when there is none."""
    bad: Counter[str] = Counter()
    for row in range(len(images)):
        try:
            _, height, width = preprocess(images.decode(row, channels=preprocess.channels)).shape
            return height // preprocess.patch_size, width // preprocess.patch_size
        except BadImageError as error:  # listed with its reason by its shard
            bad[error.reason] += 1
    raise ImageSetError(f"none of the {len(images)} images can be read ({listed(bad)}); check the source")


def check_same_images(store: Path, card: StoreCard, images: ImageSet) -> None:
    """Refuse an image set that is not the one of a store; ImageSetError gives both hashes."""
    if images.hash == card.image_set["hash"]:
        return
    raise ImageSetError(
        f"{store} holds features of another image set: {card.num_images} images, hash {card.image_set['hash'][:12]}; "
        f"this one has {len(images)}, hash {images.hash[:12]} (names, sizes and labels count). Images came, went or "
        "changed: restore the set to continue, or extract into a new store"
    )


def _check_space(store: Path, card: StoreCard, num_images: int) -> None:
    needed, free = num_images * sum(card.bytes_per_image.values()), shutil.disk_usage(store).free
    if needed > free:
        raise FovealError(
            f"{store} needs {needed:,} bytes for {num_images:,} more images, {free:,} are free; free space, choose "
            "another place, or store less: dtype int8, pca, fewer tokens"
        )


def bad_images(store: Path, card: StoreCard) -> Counter[str]:
    """Return the bad images of the finished shards, by reason."""
    bad: Counter[str] = Counter()
    for shard in range(card.num_shards):
        bad.update((read_done(store, shard) or {"bad": {}})["bad"])
    return bad


def _shifted(progress: Progress, start: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(start + done, total)
