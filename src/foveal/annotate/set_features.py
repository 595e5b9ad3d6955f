"""Features of the images of a set or a project: from a feature store, or from a model.

Shapes: N images that have one, D width.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from foveal.annotate.project import Project
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.extraction import check_same_images, open_extraction
from foveal.features.lookup import vector_name
from foveal.features.origin import check_model
from foveal.features.stamp import StoreSettings
from foveal.features.store import SUMMARY, FeatureStore
from foveal.images.imageset import ImageSet

FEATURES = "features"  # folder in a project
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


def open_features(
    project: Project, model: Model, given: Path | None = None, *, progress: Progress | None = None
) -> FeatureStore:
    """Return the features of a project's images: of a store, or of the project itself, made where they lack.

    A project that was made without a model keeps this one.

    Raises:
        FovealError: a store of another model or of other images.
    """
    if given is None:
        given = project.folder / FEATURES
        if not (given / SUMMARY).is_file():  # whole features serve as they are, whatever decodes images by now
            open_extraction(given, model, project.image_set, StoreSettings()).run(max_bad_share=1.0, progress=progress)
    found = FeatureStore.open(given)
    check_model(found, model)
    check_same_images(given, found.card, project.image_set)
    project.keep_model(found)
    return found


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
