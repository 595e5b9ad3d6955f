"""One vector for each image of a set: from a feature store, or from a model.

Shapes: N images that have one, D width.
"""

from typing import NamedTuple

import numpy as np

from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.lookup import vector_name
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet

_OTHERS_NAMED = 3


class VectorsOfSet(NamedTuple):
    """Vectors of the images that have one.

    Attributes:
        features: (N, D) float32.
        uris: of these images (N).
        missing: uris of the set's other images: they cannot be read, or the store lacks them.
    """

    features: np.ndarray
    uris: list[str]
    missing: list[str]


def stored_vectors(images: ImageSet, store: FeatureStore, *, name: str | None = None) -> VectorsOfSet:
    """Return vectors of a set's images out of a store, found by their uris.

    Args:
        images: the set, or part of the one that the store was made from.
        store: an open feature store.
        name: of the vectors; None is "cls", or the only ones that there are.

    Raises:
        FovealError: the store has none of these images, or an image has another size in bytes than when it was made.
    """
    rows = {uri: row for row, uri in enumerate(store.rows.column("uri").to_pylist())}
    uris = images.rows.column("uri").to_pylist()
    found = [uri for uri in uris if uri in rows]
    if not found:
        raise FovealError(
            f"{store.path} has none of the {len(uris)} images; its uris are like {next(iter(rows), 'none')}, those of "
            f"the set like {uris[0]}: extract the store from this set"
        )
    _check_unchanged(images, store, rows)
    features = store.read(vector_name(store, name), np.array([rows[uri] for uri in found], np.int64))
    return VectorsOfSet(features, found, [uri for uri in uris if uri not in rows])


def computed_vectors(images: ImageSet, model: Model, *, progress: Progress | None = None) -> VectorsOfSet:
    """Return the class tokens of a set's images; see `foveal.features.extract.Model.extract_set`."""
    found = model.extract_set(images, progress=progress)
    places = found.indices.tolist()
    uris = images.rows.column("uri").to_pylist()
    read = set(places)
    return VectorsOfSet(
        found.arrays["cls"].numpy(),
        [uris[place] for place in places],
        [uri for place, uri in enumerate(uris) if place not in read],
    )


def _check_unchanged(images: ImageSet, store: FeatureStore, rows: dict[str, int]) -> None:
    """Refuse images whose size in bytes is not that of the images that the store saw."""
    then = store.rows.column("bytes").to_pylist()
    now = zip(images.rows.column("uri").to_pylist(), images.rows.column("bytes").to_pylist(), strict=True)
    changed = [
        uri for uri, size in now if uri in rows and None not in (size, then[rows[uri]]) and size != then[rows[uri]]
    ]
    if changed:
        more = f" and {len(changed) - _OTHERS_NAMED} more" if len(changed) > _OTHERS_NAMED else ""
        raise FovealError(
            f"{len(changed)} images have changed since {store.path} was made: {', '.join(changed[:_OTHERS_NAMED])}"
            f"{more}; extract a new store"
        )
