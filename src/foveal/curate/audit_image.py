"""One image of an audit: read, hashed, decoded, measured; why it is removed, or what is known of it.

Shapes: n images of a shard, H W pixels.
"""

import functools
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from foveal.curate.block_list import BlockList, file_hash, url_of
from foveal.curate.perceptual import HASH_BITS, hash_of_thumbnail, thumbnail
from foveal.curate.plugins import PlugIn, load_plugin
from foveal.curate.stage import Stage, read_stage
from foveal.errors import BadImageError, FovealError
from foveal.features.batches import map_ahead
from foveal.features.unchanged import check_unchanged
from foveal.files import staging_of, write_atomically
from foveal.images.decode import DecodeLimits, decode, read_size
from foveal.images.imageset import ImageSet

STEP, SOURCE, CHANGED = "images", "source", "images"
_SHORT_SIDE = 128  # a JPEG is decoded at a half or less down to this: the hash is of 64 x 64
_JPEG_QUALITY = 95
_NO_HASH = bytes(HASH_BITS // 8)
_NO_DIGEST = bytes(32)


@dataclass(frozen=True)
class Finding:
    """What an audit found in one image.

    Attributes:
        reason: why it is removed, a stable word; None keeps it.
        detail: the same in words.
        sha256: of its bytes; None where they could not be read.
        num_bytes: of the file.
        width: pixels, upright.
        height: pixels, upright.
        code: 32 bytes of its perceptual hash, where asked for.
        quality: of that hash, 0 to 100.
        score: of the scorer, where there is one.
        changed: sha256 and bytes of the picture that a transform made of it.
    """

    reason: str | None = None
    detail: str = ""
    sha256: bytes | None = None
    num_bytes: int = 0
    width: int = 0
    height: int = 0
    code: bytes = _NO_HASH
    quality: int = 0
    score: float = np.nan
    changed: tuple[bytes, int] | None = None


class ImageAuditor:
    """Audits images of a set one by one; may be called by several threads."""

    def __init__(
        self,
        images: ImageSet,
        stage: Stage,
        *,
        block_list: BlockList | None = None,
        scorer: PlugIn | None = None,
        transform: PlugIn | None = None,
    ) -> None:
        self.images = images
        self._stage, self._settings = stage, stage.settings
        self._block_list, self._scorer, self._transform = block_list, scorer, transform
        self._limits = DecodeLimits(self._settings["max_bytes"], self._settings["max_pixels"])

    def inspect(self, row: int) -> Finding:
        """Return what is found in one image.

        Raises:
            ImageSetError: it is not the one that the set lists.
            FovealError: a function of the user failed.
        """
        url = url_of(self.images, row) if self._block_list else None
        if url and self._block_list and (entry := self._block_list.match(url)):
            return Finding("blocked_url", f"{url} is blocked by {entry}")
        found = Finding()
        try:
            data = self.images.read(row)
            digest = hashlib.sha256(data)
            check_unchanged(self.images, row, num_bytes=len(data), sha256=digest.hexdigest())
            found = Finding(sha256=digest.digest(), num_bytes=len(data))
            width, height = read_size(data, limits=self._limits)
            found = replace(found, width=width, height=height)
            if fault := self._fault_of_size(width, height):
                return replace(found, reason=fault[0], detail=fault[1])
            whole = self._scorer or self._transform
            pixels = decode(data, limits=self._limits, min_short_side=None if whole else _SHORT_SIDE)
        except BadImageError as error:
            return replace(found, reason=error.reason, detail=str(error))
        return self._judge(found, row, pixels)

    def _fault_of_size(self, width: int, height: int) -> tuple[str, str] | None:
        short, long = sorted((width, height))
        least, most = self._settings["min_side"], self._settings["max_aspect"]
        if short < least:
            return "tiny", f"{width} x {height} pixels; the shorter side must have {least}"
        if long > most * short:
            return "extreme_aspect", f"{width} x {height} pixels, {long / short:.1f} to 1; allowed is {most:g} to 1"
        return None

    def _judge(self, found: Finding, row: int, pixels: np.ndarray) -> Finding:
        shrunk = thumbnail(pixels)
        deviation, least = _deviation(shrunk), self._settings["min_deviation"]
        if deviation < least:
            detail = f"nearly one colour: levels deviate by {deviation:.2f} of 255; the least is {least:g}"
            return replace(found, reason="blank", detail=detail)
        uri = self.images.uri(row)
        if self._scorer:
            score, most = self._scorer.score(pixels, uri), self._settings["max_score"]
            found = replace(found, score=score)
            if score > most:
                detail = f"{self._scorer.name} gave {score:.4g}; the most is {most:g}"
                return replace(found, reason="scored", detail=detail)
        if self._settings["max_distance"] is not None:
            bits, quality = hash_of_thumbnail(shrunk)
            found = replace(found, code=bits.tobytes(), quality=quality)
        if self._transform and (picture := self._transform.transform(pixels, uri)) is not None:
            height, width = picture.shape[:2]
            found = replace(found, width=width, height=height, changed=self._write(row, picture))
        return found

    def _write(self, row: int, picture: np.ndarray) -> tuple[bytes, int]:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        data, path = buffer.getvalue(), changed_path(self._stage, row)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data, staging=staging_of(path))
        except OSError as error:
            raise FovealError(
                f"{path} cannot be written ({error}); free space and run the same command again: what is finished stays"
            ) from error
        return hashlib.sha256(data).digest(), len(data)


def changed_path(stage: Stage, row: int) -> Path:
    """Return where the picture lies that a transform made of an image."""
    return stage.folder / CHANGED / f"{row // stage.settings['shard_size']:05d}" / f"{row:09d}.jpg"


def shard_rows(stage: Stage, shard: int, num_images: int) -> range:
    """Return the rows of a shard."""
    size = stage.settings["shard_size"]
    return range(shard * size, min(num_images, (shard + 1) * size))


def audit_shard(folder: Path, shard: int) -> None:
    """Audit the images of one shard, decoding in as many threads as PyTorch would compute in."""
    stage = read_stage(folder)
    auditor = _auditor(folder, stage.stamp)
    rows = shard_rows(stage, shard, len(auditor.images))
    findings = list(map_ahead(auditor.inspect, rows, torch.get_num_threads(), ahead=64))
    stage.save(STEP, shard, pack(findings))


@functools.lru_cache(maxsize=1)  # a process works on one stage, shard after shard
def _auditor(folder: Path, _stamp: str) -> ImageAuditor:
    stage = read_stage(folder)
    block_list = None
    if path := stage.sources.get("block_list"):
        block_list = BlockList.open(Path(path))
        _check_same_file(stage, "block_list", file_hash(Path(path)))
    plugins = {key: load_plugin(name) for key in ("scorer", "transform") if (name := stage.settings[key])}
    for key, plugin in plugins.items():
        _check_same_file(stage, key, plugin.sha256)
    images = ImageSet.open(stage.folder / SOURCE)
    return ImageAuditor(
        images, stage, block_list=block_list, scorer=plugins.get("scorer"), transform=plugins.get("transform")
    )


def _check_same_file(stage: Stage, key: str, sha256: str) -> None:
    if stage.inputs[key] != sha256:
        raise FovealError(f"the file of {key} has changed since {stage.folder} was begun; choose another --out")


def pack(findings: Sequence[Finding]) -> dict[str, np.ndarray]:
    """Return findings as arrays of n rows, and the words as JSON."""
    words = [[n, one.reason, one.detail] for n, one in enumerate(findings) if one.reason]
    changed = [one.changed or (_NO_DIGEST, 0) for one in findings]
    return {
        "removed": np.frombuffer(json.dumps(words).encode(), np.uint8),
        "read": np.array([one.sha256 is not None for one in findings]),
        "sha256": _bytes_of([one.sha256 or _NO_DIGEST for one in findings]),
        "num_bytes": np.array([one.num_bytes for one in findings], np.int64),
        "size": np.array([(one.width, one.height) for one in findings], np.int32),
        "code": _bytes_of([one.code for one in findings]),
        "quality": np.array([one.quality for one in findings], np.uint8),
        "score": np.array([one.score for one in findings], np.float64),
        "changed_sha256": _bytes_of([digest for digest, _ in changed]),
        "changed_bytes": np.array([num_bytes for _, num_bytes in changed], np.int64),
    }


def words_of(packed: np.ndarray) -> list[tuple[int, str, str]]:
    """Return (row within the shard, reason, detail) of the images that `pack` marks as removed."""
    return [(row, reason, detail) for row, reason, detail in json.loads(packed.tobytes())]


def _bytes_of(values: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)


def _deviation(shrunk: np.ndarray) -> float:
    """Return the standard deviation of the levels, of the channel with the largest."""
    _, deviations = cv2.meanStdDev(shrunk)
    return float(deviations.max())
