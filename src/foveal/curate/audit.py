"""Audit: what no training should see, found by looking at every image once; see docs/curate.md.

Removed are images that cannot be read, are too small, too long or of one colour, come from a blocked address or score
too high, and those that are copies of others, to the byte or to the eye.

Shapes: N images of the set.
"""

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveal.curate.audit_duplicates import near_copies
from foveal.curate.audit_image import SOURCE, STEP, audit_shard, shard_rows, words_of
from foveal.curate.audit_result import Audited, finish
from foveal.curate.block_list import BlockList, file_hash, has_urls
from foveal.curate.perceptual import MAX_DISTANCE, first_of_equal, import_pdqhash
from foveal.curate.plugins import load_plugin
from foveal.curate.runner import Runner
from foveal.curate.stage import Stage, open_stage
from foveal.errors import FovealError, ImageSetError
from foveal.features.batches import Progress
from foveal.features.unchanged import UNREADABLE, changed_at, changed_uris, is_readable
from foveal.images.imageset import ImageSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditSettings:
    """What an image must be.

    Attributes:
        min_side: pixels of the shorter side.
        max_pixels: width times height.
        max_bytes: of the file.
        max_aspect: longer over shorter side.
        min_deviation: standard deviation of the levels, 0 to 255, of the image shrunk to 64 x 64, in the channel with
            the largest; below, the image counts as blank.
        max_distance: bits of 256 within which perceptual hashes are near-copies, 0 to 31; None does not look for them.
        max_score: of the scorer, 0 to 1.
        shard_size: images that an interruption may cost.

    Raises:
        FovealError: a value outside its range.
    """

    min_side: int = 32
    max_pixels: int = 100_000_000
    max_bytes: int = 256 * 1024 * 1024
    max_aspect: float = 5.0
    min_deviation: float = 2.0
    max_distance: int | None = None
    max_score: float = 0.5
    shard_size: int = 1024

    def __post_init__(self) -> None:
        least = {"min_side": 1, "max_pixels": 1, "max_bytes": 1, "max_aspect": 1, "min_deviation": 0, "shard_size": 1}
        for name, bound in least.items():
            if not bound <= getattr(self, name) < math.inf:
                raise FovealError(f"{name}={getattr(self, name)}; it must be at least {bound}")
        if not 0 <= self.max_score <= 1:
            raise FovealError(f"max_score={self.max_score}; scores are numbers from 0 to 1")
        if self.max_distance is not None and not 0 <= self.max_distance <= MAX_DISTANCE:
            raise FovealError(
                f"max_distance={self.max_distance}; choose 0 to {MAX_DISTANCE} of 256 bits, 10 for near-copies only"
            )


def run_audit(
    images: ImageSet,
    *,
    out: Path,
    settings: AuditSettings | None = None,
    block_list: Path | None = None,
    scorer: str | None = None,
    transform: str | None = None,
    runner: Runner | None = None,
    progress: Progress | None = None,
) -> Stage:
    """Audit a set of images, or continue where an audit was interrupted.

    The set that is kept has the columns sha256, width and height, and where they were asked for phash and score.

    Args:
        images: the set.
        out: the stage.
        settings: what an image must be.
        block_list: a file for `BlockList.open`: images whose url is blocked are removed unread.
        scorer: a function for `load_plugin`, of (H, W, 3) uint8: its score from 0 to 1.
        transform: likewise: the image as it shall be kept, or None to leave it; what it changes is written below `out`.
        runner: where shards run; None is this process.
        progress: called with (shards done, shards in all).

    Returns:
        The finished stage.

    Raises:
        FovealError: the set is empty, nothing is left of it, or see the arguments.
        ImageSetError: images have changed since the set was made, or since their shard was audited.
    """
    settings, runner = settings or AuditSettings(), runner or Runner()
    if not len(images):
        raise FovealError("the set has no images; give a source of at least one")
    stage = _open(images, out, settings, block_list=block_list, scorer=scorer, transform=transform)
    if stage.summary is not None:
        return stage
    num_shards = -(-len(images) // settings.shard_size)
    _check_unchanged_since(stage, images, num_shards)
    _reopen(stage, images, num_shards)
    runner.run(audit_shard, stage, STEP, num_shards, progress=progress)
    audited = Audited.load(stage, num_shards)
    _remove_copies(audited)
    if settings.max_distance is not None:
        _remove_near_copies(audited, stage, runner)
    finish(stage, images, audited)
    return stage


def _open(images: ImageSet, out: Path, settings: AuditSettings, **given: str | Path | None) -> Stage:
    """Check what the user gave, and open the stage with the hashes of all of it."""
    if settings.max_distance is not None:
        import_pdqhash()
    inputs, sources = {"images": images.hash}, {}
    plans: dict[str, Any] = asdict(settings)
    if block_list := given["block_list"]:
        BlockList.open(Path(block_list))
        if not has_urls(images):
            raise FovealError(
                f"no image of the set has an address that {block_list} could block; give them by --urls, as a column "
                "url of the image set, or leave the list out"
            )
        inputs["block_list"], sources["block_list"] = file_hash(Path(block_list)), block_list
    for key in ("scorer", "transform"):
        plugin = load_plugin(str(given[key])) if given[key] else None
        plans[key] = plugin and plugin.name
        if plugin:
            inputs[key] = plugin.sha256
    stage = open_stage(out, "audit", settings=plans, inputs=inputs, sources=sources)
    if not (stage.folder / SOURCE).is_dir():
        images.save(stage.folder / SOURCE)
    return stage


def _check_unchanged_since(stage: Stage, images: ImageSet, num_shards: int) -> None:
    """Refuse images that changed after their shard was finished; only files newer than it are read."""
    missing = set(stage.missing(STEP, num_shards))
    times: dict[Path, float] = {}
    for shard in sorted(set(range(num_shards)) - missing):
        path = stage.path(STEP, shard)
        finished, rows = path.stat().st_mtime, shard_rows(stage, shard, len(images))
        newer = [row for row in rows if changed_at(images, row, times) >= finished]
        if not newer:
            continue
        found = stage.load(STEP, shard)
        digests = [found["sha256"][row - rows.start].tobytes().hex() for row in newer]
        read = [bool(found["read"][row - rows.start]) for row in newer]
        known = [digest if seen else None for digest, seen in zip(digests, read, strict=True)]
        if changed := list(changed_uris(images, newer, known)):
            raise ImageSetError(
                f"images have changed since they were audited: {', '.join(changed[:5])}; restore them, or remove "
                f"{path} to audit its images as they are now"
            )


def _reopen(stage: Stage, images: ImageSet, num_shards: int) -> None:
    """Discard finished shards with images that their disk did not give then, and does now: they are done again."""
    for shard in sorted(set(range(num_shards)) - set(stage.missing(STEP, num_shards))):
        start = shard_rows(stage, shard, len(images)).start
        words = words_of(stage.load(STEP, shard)["removed"])
        if any(is_readable(images, start + row) for row, reason, _ in words if reason == UNREADABLE):
            logger.warning("shard %d of %s: unreadable images can be read now; it is done again", shard, stage.folder)
            stage.path(STEP, shard).unlink()


def _remove_copies(audited: Audited) -> None:
    rows = np.flatnonzero(audited.kept)
    first = rows[first_of_equal(audited.sha256[rows])]
    for row, kept in zip(rows[rows != first].tolist(), first[rows != first].tolist(), strict=True):
        audited.remove(row, "duplicate", "the same bytes", kept_row=kept, score=0.0)


def _remove_near_copies(audited: Audited, stage: Stage, runner: Runner) -> None:
    rows = np.flatnonzero(audited.kept & audited.is_hashed)
    areas = audited.size[rows].astype(np.int64).prod(axis=1)
    for row, kept, distance in near_copies(stage, runner, rows, audited.code[rows], areas):
        detail = f"PDQ hashes differ in {distance} of 256 bits"
        audited.remove(row, "near_duplicate", detail, kept_row=kept, score=float(distance))
    for row, (reason, words, first, _) in list(audited.removed.items()):
        if first is not None and not audited.kept[first]:  # the first of equal files went for a larger one
            _, detail, kept_row, score = audited.removed[first]
            audited.remove(row, reason, f"{words} as a near-copy, whose {detail}", kept_row=kept_row, score=score)
