"""What a finished dedup leaves: the images kept, those removed with reasons, and those to be looked at."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from foveal.curate.dedup_groups import Groups, HeldOut, chosen, facts_of
from foveal.curate.stage import Stage, removed_table
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError
from foveal.features.fixed_point import whole_rows
from foveal.files import staging_of

DUPLICATE, KEEP_OUT = "duplicate", "keep-out"
REVIEW = "review.parquet"
_ROWS_AT_A_TIME = 4096


def write_outcome(
    stage: Stage,
    vectors: Vectors,
    references: Vectors | None,
    *,
    groups: Groups,
    held_out: HeldOut | None,
    order: np.ndarray,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Choose what stays, write everything, and return the summary.

    Args:
        stage: to finish.
        vectors: of the pool.
        references: of the evaluation images.
        groups: of copies.
        held_out: what to drop for evaluation images.
        order: of `keep_order`.
        facts: for the summary.
    """
    dropped = np.zeros(len(order), bool) if held_out is None else held_out.dropped
    stays = chosen(groups, order, ~dropped)
    is_kept = stays == np.arange(len(order))
    kept, copies = np.flatnonzero(is_kept), np.flatnonzero(~is_kept & ~dropped)
    images = vectors.images()
    uris = np.asarray(images.rows.column("uri").to_pylist(), object)
    removed = [_duplicates(stage, vectors, uris, groups, copies, stays[copies])]
    if held_out is not None and references is not None:
        removed.append(_held_out(stage, references, uris, held_out))
        _write_review(stage, uris, held_out)
    counts = {**facts_of(groups, held_out), **facts}
    return stage.finish(images.subset(kept), pa.concat_tables(removed), counts, rows=vectors.numbers(kept))


def _duplicates(
    stage: Stage, vectors: Vectors, uris: np.ndarray, groups: Groups, copies: np.ndarray, stays: np.ndarray
) -> pa.Table:
    sizes = np.bincount(groups.label)[groups.label[copies]]
    least = stage.settings["similarity"]
    return removed_table(
        {
            "uri": uris[copies],
            "reason": [DUPLICATE] * len(copies),
            "detail": [f"one of {size} images that are linked by similarities of {least} and more" for size in sizes],
            "kept_uri": uris[stays],
            "score": _similarities(vectors, copies, stays),
        }
    )


def _held_out(stage: Stage, references: Vectors, uris: np.ndarray, held_out: HeldOut) -> pa.Table:
    """Return the table of images that go for an evaluation image: their own, or the nearest of their component."""
    linked = np.flatnonzero(held_out.reference >= 0)
    nearest_first = linked[np.lexsort((linked, -held_out.similarity[linked], held_out.label[linked]))]
    labels, places = np.unique(held_out.label[nearest_first], return_index=True)
    link = np.full(len(uris), -1)
    link[labels] = nearest_first[places]
    rows = np.flatnonzero(held_out.dropped)
    direct = held_out.reference[rows] >= 0
    through = np.where(direct, rows, link[held_out.label[rows]])
    evaluation = np.asarray(references.images().rows.column("uri").to_pylist(), object)
    least = stage.settings["keep_out_similarity"]
    detail = [
        f"similarity of at least {least} to an evaluation image"
        if is_direct
        else f"linked by similarities of {least} and more to {uris[link]}, which resembles an evaluation image"
        for is_direct, link in zip(direct, through, strict=True)
    ]
    return removed_table(
        {
            "uri": uris[rows],
            "reason": [KEEP_OUT] * len(rows),
            "detail": detail,
            "kept_uri": evaluation[held_out.reference[through]],
            "score": pa.array(held_out.similarity[rows], mask=~direct),
        }
    )


def _write_review(stage: Stage, uris: np.ndarray, held_out: HeldOut) -> None:
    rows = np.flatnonzero(held_out.review)
    label = held_out.label[rows]
    sizes = np.bincount(held_out.label)
    linked = np.bincount(held_out.label[held_out.reference >= 0], minlength=len(sizes))
    table = pa.table(
        {
            "uri": pa.array(uris[rows], pa.string()),
            "component": pa.array(uris[label], pa.string()),
            "component_size": pa.array(sizes[label], pa.int64()),
            "num_linked": pa.array(linked[label], pa.int64()),
        }
    )
    path = stage.folder / REVIEW
    staging = staging_of(path)
    try:
        pq.write_table(table, staging)
        staging.replace(path)
    except OSError as error:
        raise FovealError(
            f"{path} cannot be written ({error}); free space and run the same command again: what is finished stays"
        ) from error


def _similarities(vectors: Vectors, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    found = np.empty(len(left))
    for start in range(0, len(left), _ROWS_AT_A_TIME):
        some = slice(start, start + _ROWS_AT_A_TIME)
        (one, length), (other, other_length) = (
            whole_rows(torch.from_numpy(vectors.take(rows[some]))) for rows in (left, right)
        )
        found[some] = (one * other).sum(dim=1).div_(length * other_length).clamp_(max=1).numpy()
    return found
