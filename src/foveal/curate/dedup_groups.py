"""The last steps of dedup: from edges to groups, and of each group what stays, what goes, and why.

Shapes: N rows.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveal.curate.dedup_copies import DISTINCT
from foveal.curate.dedup_search import HELD_OUT, PAIRS
from foveal.curate.stage import Stage
from foveal.curate.unionfind import UnionFind
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError
from foveal.images.imageset import ImageSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """What the graph with the evaluation images says of each row.

    Attributes:
        label: (N,) int64, the smallest row of its component.
        reference: (N,) int64, its most similar evaluation image if there is an edge to it, else -1.
        similarity: (N,) float64, to that one.
        dropped: (N,) bool.
        review: (N,) bool, kept although its component holds an evaluation image: the component is too large to drop.
    """

    label: np.ndarray
    reference: np.ndarray
    similarity: np.ndarray
    dropped: np.ndarray
    review: np.ndarray


@dataclass(frozen=True)
class Groups:
    """Of each row the group of its copies, as its smallest row, and how many neighbours and equal rows there were."""

    label: np.ndarray
    num_pairs: int
    num_equal: int


def keep_order(vectors: Vectors, keep: str, quality: ImageSet | None) -> np.ndarray:
    """Return (N,) int64, the place of each row in the order in which one of a group is chosen: the lowest stays.

    Raises:
        FovealError: "best" without a quality of every image, or a quality without "best".
    """
    rows = np.arange(vectors.num_rows)
    if (quality is not None) != (keep == "best"):
        said = "needs images with a quality" if quality is None else "does not look at the quality given"
        raise FovealError(f"keep={keep!r} {said}; give a quality with keep='best' only")
    if keep == "first":
        return rows
    images = vectors.images().rows
    if quality is not None:
        columns = [_quality_of(images, quality)]
    elif {"width", "height"} <= {*images.column_names}:
        pixels = pc.multiply(images.column("width").cast(pa.int64()), images.column("height").cast(pa.int64()))
        columns = [_filled(pixels), _filled(images.column("bytes"))]
    else:
        logger.warning("%s does not know the sizes of its images; of each group the first is kept", vectors.path)
        return rows
    places = np.empty_like(rows)
    places[np.lexsort((rows, *(-column for column in reversed(columns))))] = rows
    return places


def find_groups(stage: Stage, num_rows: int, num_shards: int) -> Groups:
    """Return the connected components of edges of at least the similarity."""
    joined, num_pairs = UnionFind(num_rows), 0
    for shard in range(num_shards):
        edges = stage.load(PAIRS, shard)
        near = edges["similarity"] >= stage.settings["similarity"]
        joined.union(edges["left"][near], edges["right"][near])
        num_pairs += int(near.sum())
    equals = stage.load(DISTINCT, 0)
    joined.union(equals["copy"], equals["original"])
    return Groups(joined.labels(), num_pairs, len(equals["copy"]))


def find_held_out(stage: Stage, num_rows: int, num_shards: int, num_held_out_shards: int) -> HeldOut:
    """Return what is to be dropped for its likeness to evaluation images."""
    joined = UnionFind(num_rows)
    for shard in range(num_shards):
        edges = stage.load(PAIRS, shard)
        near = edges["similarity"] >= stage.settings["keep_out_similarity"]
        joined.union(edges["left"][near], edges["right"][near])
    equals = stage.load(DISTINCT, 0)
    joined.union(equals["copy"], equals["original"])
    reference, similarity = np.full(num_rows, -1), np.zeros(num_rows)
    for shard in range(num_held_out_shards):
        edges = stage.load(HELD_OUT, shard)
        reference[edges["left"]], similarity[edges["left"]] = edges["right"], edges["similarity"]
    reference[equals["copy"]] = reference[equals["original"]]
    similarity[equals["copy"]] = similarity[equals["original"]]
    label, linked = joined.labels(), reference >= 0
    touched = np.zeros(num_rows, bool)
    touched[label[linked]] = True
    touched = touched[label]
    if stage.settings["keep_out_rule"] == "direct":
        return HeldOut(label, reference, similarity, linked, np.zeros(num_rows, bool))
    too_large = np.bincount(label, minlength=num_rows)[label] > stage.settings["component_limit"]
    return HeldOut(label, reference, similarity, linked | touched & ~too_large, touched & too_large & ~linked)


def chosen(groups: Groups, order: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Return (N,) int64: of each row the one of its group that stays, of those available; elsewhere -1."""
    by_place = np.argsort(order)
    best = np.full(len(order), len(order))
    np.minimum.at(best, groups.label[available], order[available])
    return np.where(available, by_place[np.where(available, best[groups.label], 0)], -1)


def facts_of(groups: Groups, held_out: HeldOut | None) -> dict[str, Any]:
    """Return what the summary says of groups and of what was kept out."""
    sizes = np.bincount(groups.label)
    facts: dict[str, Any] = {
        "num_images": len(groups.label),
        "num_equal": groups.num_equal,
        "num_neighbours": groups.num_pairs,
        "num_groups": int((sizes > 1).sum()),
        "largest_group": int(sizes.max()),
    }
    if held_out is not None:
        linked = held_out.reference >= 0
        facts["keep_out"] = {
            "num_linked": int(linked.sum()),
            "num_components": len(np.unique(held_out.label[linked])),
            "num_components_for_review": len(np.unique(held_out.label[held_out.review])),
            "num_for_review": int(held_out.review.sum()),
        }
    return facts


def _quality_of(images: pa.Table, quality: ImageSet) -> np.ndarray:
    if "quality" not in quality.rows.column_names:
        raise FovealError(
            f"the images of the quality have no column quality, but {', '.join(quality.rows.column_names)}; add it, or "
            "keep the largest or the first"
        )
    places = pc.index_in(images.column("uri"), quality.rows.column("uri"))
    values = pc.take(quality.rows.column("quality").cast(pa.float64()), places)
    if values.null_count or not np.isfinite(values.to_numpy()).all():
        missing = images.column("uri").filter(pc.invert(pc.fill_null(pc.is_finite(values), False)))
        raise FovealError(
            f"{len(missing)} images have no quality, the first is {missing[0]}; score all, or keep the largest or the "
            "first"
        )
    return np.asarray(values.to_numpy())


def _filled(column: Any) -> np.ndarray:
    return np.asarray(pc.fill_null(column.cast(pa.int64()), 0).to_numpy())
