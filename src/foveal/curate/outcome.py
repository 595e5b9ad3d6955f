"""The result of a curation as an image set: the images that are left, each with what brought it there."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from foveal.curate.ready import Sources, joined
from foveal.curate.recipe import Recipe
from foveal.images.imageset import ImageSet

if TYPE_CHECKING:
    from foveal.curate.pipeline import Found

_PROVENANCE = ("query_set", "method", "query", "score", "cluster")


def curated_images(found: "Found", recipe: Recipe, sources: Sources) -> ImageSet:
    """Return the images that all stages have kept, with their provenance.

    The column method says what brought an image: "sample-based" or "cluster-based" retrieval, "balanced" sampling of
    all, "kept" where nothing was chosen, "as is" for an image of the seeds; query_set, query and score say for which
    image it was retrieved, cluster.1 and so on where it lies.
    """
    if found.vectors is None:
        kept = ImageSet.open(found.images)
        rows = np.arange(len(kept))
    else:
        kept = found.vectors.images()
        rows = rows_left(found)
    table = kept.rows.take(pa.array(rows))
    if "cluster" in found.stages:
        clusters = found.stages["cluster"].images().rows
        for name in clusters.column_names:
            if name.startswith("cluster.") and name not in table.column_names:
                table = table.append_column(name, clusters.column(name).take(pa.array(rows)))
    for name, column in _provenance(found, rows).items():
        table = table.append_column(name, column)
    result = ImageSet(table, root=kept.root)
    return _with_seeds(result, sources) if recipe.seeds_as_is else result


def rows_left(found: "Found") -> np.ndarray:
    """Return which of the images described for clusters are left, (n,) int64, ascending."""
    if found.vectors is None:
        return np.empty(0, np.int64)
    return np.arange(found.vectors.num_rows) if found.rows is None else found.vectors.places(np.load(found.rows))


def _provenance(found: "Found", rows: np.ndarray) -> dict[str, pa.ChunkedArray | pa.Array]:
    """Return by what each image was retrieved, in the order of `rows`."""
    if "retrieve" not in found.stages or found.vectors is None:
        how = "balanced" if "sample" in found.stages else "kept"
        return {"method": pa.array([how] * len(rows), pa.string())}
    stage = found.stages["retrieve"]
    retrieved, taken = stage.images().rows, found.vectors.places(np.load(stage.rows))
    places = np.searchsorted(taken, rows)
    return {
        name: retrieved.column(name).take(pa.array(places)) for name in _PROVENANCE if name in retrieved.column_names
    }


def _with_seeds(result: ImageSet, sources: Sources) -> ImageSet:
    """Return the images of the seeds, as they are, before the others."""
    seeds = []
    for name, (_, images) in sources.seeds.items():
        columns = {"query_set": name, "method": "as is"}
        table = images.rows.select(["uri", "bytes", "mtime", "label"]).replace_schema_metadata(None)
        for key in result.rows.column_names:
            if key not in table.column_names:
                field = result.rows.schema.field(key)
                table = table.append_column(
                    field,
                    pa.array([columns[key]] * len(table), field.type)
                    if key in columns
                    else pa.nulls(len(table), field.type),
                )
        seeds.append(ImageSet(table.select(result.rows.column_names), root=images.root))
    return joined([*seeds, result])
