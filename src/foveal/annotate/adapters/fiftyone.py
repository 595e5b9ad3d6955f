"""FiftyOne's datasets: features and a similarity index into them, annotations in and out.

Source: the public interface of the packages fiftyone and fiftyone-brain, docs.voxel51.com.

Shapes: N samples with features, D width.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from foveal.annotate.formats.fiftyone_data import labels_in, notes_of, sample_of
from foveal.annotate.formats.found import Found
from foveal.annotate.formats.pictures import Pictures
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation
from foveal.errors import FovealError, nearest
from foveal.features.lookup import vector_name
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet


def add_features(
    dataset: Any, store: FeatureStore, images: ImageSet, *, field: str = "foveal", similarity: str | None = None
) -> int:
    """Give the samples of a dataset the features of a store.

    Args:
        dataset: a `fiftyone.Dataset`; its samples are known by the ends of their paths.
        store: of features.
        images: the image set of the store.
        field: of the samples that takes them, a vector of D float32.
        similarity: the `brain_key` of an index by cosine; None makes none.

    Returns:
        N, the number of samples that have features now.

    Raises:
        FovealError: fiftyone is missing, no sample is among the images, or a name fits several.

    Example:
        >>> add_features(dataset, FeatureStore.open("store"), images, similarity="foveal")  # doctest: +SKIP
        >>> dataset.sort_by_similarity(dataset.first().id, brain_key="foveal", k=9)  # doctest: +SKIP
    """
    places = {row: place for place, row in enumerate(store.rows.column("row").to_pylist())}
    vectors = store.read(vector_name(store, None)).astype(np.float32)
    found = {
        identity: vectors[places[row]]
        for identity, _, row in _rows(dataset, Pictures(images))
        if row is not None and row in places
    }
    if not found:
        raise FovealError(
            f"no sample of {dataset.name} is among the {len(images)} images, whose names are like {images.uri(0)}; "
            "give the image set of these samples"
        )
    dataset.set_values(field, found, key_field="id")
    if similarity is not None:
        _brain().compute_similarity(
            dataset.exists(field), embeddings=field, brain_key=similarity, metric="cosine", backend="sklearn"
        )
    return len(found)


def add_annotations(dataset: Any, annotated: AnnotatedSet, *, prefix: str = "foveal") -> int:
    """Write annotations into the fields PREFIX_detections and PREFIX_labels of a dataset's samples.

    Masks, boxes and labels are kept as in the files of `foveal.annotate.formats`; what the fields held is replaced.

    Returns:
        The number of samples of annotated pictures.

    Raises:
        FovealError: fiftyone is missing, or no sample is of an annotated picture.
    """
    fiftyone = _fiftyone()
    by_image: dict[str, list[Annotation]] = defaultdict(list)
    for one in annotated.annotations:
        by_image[one.image].append(one)
    sizes = {image.uri: image for image in annotated.images}
    samples = {identity: uri for identity, path, _ in _rows(dataset, None) if (uri := _uri_of(path, sizes)) is not None}
    if annotated.images and not samples:
        raise FovealError(
            f"no sample of {dataset.name} is of an annotated picture; their names are like {annotated.images[0].uri}"
        )
    content = {identity: sample_of(sizes[uri], by_image[uri]) for identity, uri in samples.items()}
    for name, kind in (("detections", fiftyone.Detections), ("labels", fiftyone.Classifications)):
        values = {identity: kind.from_dict(sample[name]) for identity, sample in content.items()}
        dataset.set_values(f"{prefix}_{name}", values, key_field="id")
    return len(samples)


def read_dataset(dataset: Any, fields: Collection[str], *, images: ImageSet) -> Found:
    """Read annotations from fields of a dataset's samples.

    Args:
        dataset: a `fiftyone.Dataset`, or a view.
        fields: of labels: Detections, Classifications, closed Polylines, or one of these.
        images: the pictures; samples of others are left out, and counted in the notes.

    Raises:
        FovealError: no such field, or what no picture can have.
    """
    known = dataset.get_field_schema()
    if missing := [name for name in fields if name not in known]:
        raise FovealError(f"{dataset.name} has no field {missing[0]!r}{nearest(missing[0], known)}; name one it has")
    pictures = Pictures(images)
    found: dict[str, AnnotatedImage] = {}
    annotations: list[Annotation] = []
    counts: Counter[str] = Counter()
    for sample in dataset.select_fields(list(fields)).iter_samples():
        where = f"{dataset.name}: {sample.filepath}"
        if (image := pictures.find(sample.filepath)) is None:
            counts["other"] += 1
            continue
        if image.uri in found:
            raise FovealError(f"{where} is of {image.uri}, as another sample is; leave one out")
        found[image.uri] = image
        for name in fields:
            if sample[name] is not None:
                annotations += labels_in(sample[name].to_dict(), image, counts, where=f"{where}: {name}")
    declared = [str(one) for name in fields for one in dataset.classes.get(name, [])]
    classes = dict.fromkeys([*declared, *(one.class_name for one in annotations)])
    notes = [f"{num} samples are of other pictures, and left out" for num in [counts.pop("other", 0)] if num]
    return Found(AnnotatedSet(tuple(classes), tuple(found.values()), tuple(annotations)), (*notes, *notes_of(counts)))


def _rows(dataset: Any, pictures: Pictures | None) -> Iterator[tuple[str, str, int | None]]:
    """Yield id, path and row of each sample."""
    for identity, path in zip(*dataset.values(["id", "filepath"]), strict=True):
        yield identity, path, None if pictures is None else pictures.index(path)


def _uri_of(path: str, uris: Collection[str]) -> str | None:
    """Return the longest end of a path that is one of the uris."""
    parts = path.replace("\\", "/").split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end in uris), None)


def _fiftyone() -> Any:
    try:
        import fiftyone
    except ModuleNotFoundError as error:
        raise FovealError("fiftyone is not installed: pip install fiftyone") from error
    return fiftyone


def _brain() -> Any:
    _fiftyone()
    import fiftyone.brain

    return fiftyone.brain
