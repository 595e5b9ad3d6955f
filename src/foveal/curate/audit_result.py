"""What an audit found, put together from its shards, and written as the set that is kept and the table of the others.

Shapes: N images of the set.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from foveal.curate.audit_image import STEP, changed_path, words_of
from foveal.curate.perceptual import MIN_QUALITY
from foveal.curate.stage import Stage, removed_table
from foveal.errors import FovealError
from foveal.images.imageset import ImageSet


@dataclass
class Audited:
    """The findings of all images: some 100 bytes each.

    Attributes:
        sha256: (N, 32) uint8.
        num_bytes: (N,) int64.
        size: (N, 2) int32, width and height.
        code: (N, 32) uint8, perceptual hashes; zeros where there is none.
        quality: (N,) uint8, of these.
        score: (N,) float64; NaN where there is none.
        changed_sha256: (N, 32) uint8, of what a transform has written.
        changed_bytes: (N,) int64, of that; 0 where it has written nothing.
        kept: (N,) bool.
        removed: by row the reason, the detail, the row that it was removed for, and the score.
    """

    sha256: np.ndarray
    num_bytes: np.ndarray
    size: np.ndarray
    code: np.ndarray
    quality: np.ndarray
    score: np.ndarray
    changed_sha256: np.ndarray
    changed_bytes: np.ndarray
    kept: np.ndarray
    removed: dict[int, tuple[str, str, int | None, float | None]] = field(default_factory=dict)

    @classmethod
    def load(cls, stage: Stage, num_shards: int) -> "Audited":
        """Put the shards together, in their order."""
        shards = [stage.load(STEP, shard) for shard in range(num_shards)]
        words = [words_of(shard.pop("removed")) for shard in shards]
        starts = np.cumsum([0, *(len(shard.pop("read")) for shard in shards)])
        arrays: dict[str, Any] = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
        found = cls(**arrays, kept=np.ones(starts[-1], bool))
        for start, removed in zip(starts[:-1].tolist(), words, strict=True):
            for row, reason, detail in removed:
                score = float(found.score[start + row]) if reason == "scored" else None
                found.remove(start + row, reason, detail, score=score)
        return found

    @property
    def is_hashed(self) -> np.ndarray:
        """(N,) bool: images with a perceptual hash to go by; a smooth gradient has none."""
        return self.quality >= MIN_QUALITY

    def remove(
        self, row: int, reason: str, detail: str, *, kept_row: int | None = None, score: float | None = None
    ) -> None:
        """Take an image out, for a reason."""
        self.kept[row] = False
        self.removed[row] = (reason, detail, kept_row, score)


def finish(stage: Stage, images: ImageSet, audited: Audited) -> dict[str, Any]:
    """Write set and table, and return the summary; FovealError where nothing is kept."""
    rows = np.flatnonzero(audited.kept)
    if not len(rows):
        _, (reason, detail, *_) = min(audited.removed.items())
        raise FovealError(
            f"none of the {len(images):,} images is kept; the first is {reason}: {detail}. Give other images, or other "
            "limits and another --out"
        )
    kept = _kept(stage, images, audited, rows)
    width, height = audited.size[rows].T
    counts = {
        "num_images": len(images),
        "num_bytes": int(np.where(audited.changed_bytes > 0, audited.changed_bytes, audited.num_bytes)[rows].sum()),
        "width": _spread(width),
        "height": _spread(height),
        "num_changed": int((audited.changed_bytes[rows] > 0).sum()),
    }
    return stage.finish(kept, _removed(images, audited), counts)


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _kept(stage: Stage, images: ImageSet, audited: Audited, rows: np.ndarray) -> ImageSet:
    table = images.rows.take(pa.array(rows))
    is_changed = audited.changed_bytes[rows] > 0
    digests = np.where(is_changed[:, None], audited.changed_sha256[rows], audited.sha256[rows])
    columns: dict[str, Any] = {
        "sha256": _hex(digests),
        "width": audited.size[rows, 0],
        "height": audited.size[rows, 1],
        "bytes": np.where(is_changed, audited.changed_bytes[rows], audited.num_bytes[rows]),
    }
    if stage.settings["max_distance"] is not None:
        columns["phash"] = _hex(audited.code[rows])
    if stage.settings["scorer"]:
        columns["score"] = audited.score[rows]
    if stage.settings["transform"]:
        uris = table.column("uri").to_pylist()
        columns["original_uri"] = uris
        columns["uri"] = [
            os.path.relpath(changed_path(stage, row), images.root) if changed else uri
            for row, changed, uri in zip(rows.tolist(), is_changed.tolist(), uris, strict=True)
        ]
    plain = {name: table.column(name) for name in table.column_names}
    filled = pa.table(plain | columns).replace_schema_metadata(table.schema.metadata)
    return ImageSet(filled, root=images.root)


def _removed(images: ImageSet, audited: Audited) -> pa.Table:
    rows = sorted(audited.removed)
    reasons, details, kept, scores = zip(*(audited.removed[row] for row in rows), strict=True) if rows else ((),) * 4
    uris = images.rows.column("uri")
    kept_uris = uris.take(pa.array(kept, pa.int64()))
    return removed_table(
        {
            "uri": uris.take(pa.array(rows, pa.int64())).to_pylist(),
            "reason": list(reasons),
            "detail": list(details),
            "kept_uri": kept_uris.to_pylist(),
            "score": list(scores),
        }
    )


def _hex(digests: np.ndarray) -> list[str]:
    return [row.tobytes().hex() for row in digests]
