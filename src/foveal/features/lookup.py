"""Search a feature store by pictures or by its own rows: the model checked, exact or by index.

Shapes: Q queries, k neighbours, D width.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from foveal.engine.base import Engine
from foveal.engine.device import open_device
from foveal.errors import BadImageError, FovealError, nearest
from foveal.features.database import Database
from foveal.features.extract import Model
from foveal.features.index import Index
from foveal.features.origin import check_model, open_store_model, store_engine
from foveal.features.search import Neighbours, SearchPrecision, search_exact, without_self
from foveal.features.store import FeatureStore, read_done
from foveal.features.tokens import encode_arrays
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import ImageLike, Preprocess

EXACT_ROWS = 1_000_000
ROW, URI = "row:", "uri:"

Method = Literal["auto", "exact", "ann"]


@dataclass(frozen=True)
class SearchResult:
    """What a search of a store found.

    Attributes:
        queries: as given.
        rows: (Q, k) int64, row numbers of the store, the most similar first.
        similarities: (Q, k) float32, cosines.
        uris: of these rows, a list for each query.
        how: one plain line: exact or by which index, and of how many rows.
    """

    queries: tuple[ImageLike, ...]
    rows: np.ndarray
    similarities: np.ndarray
    uris: list[list[str]]
    how: str


def search_store(
    store: FeatureStore,
    queries: Sequence[ImageLike],
    *,
    model: Model | str | Path | None = None,
    num_heads: int | None = None,
    k: int = 10,
    name: str | None = None,
    method: Method = "auto",
    index: str | Path | None = None,
    precision: SearchPrecision = "fp32",
    device: str = "cpu",
) -> SearchResult:
    """Find the images of a store that are most similar to pictures, or to images of the store.

    Args:
        store: an open store.
        queries: pictures (paths, Pillow images, arrays), or rows of the store as "row:12" or "uri:cats/7.jpg"; a row is
            not among its own neighbours. A file of such a name is meant by "./row:12".
        model: the model of the store, or where it lies, for pictures; None is where it lay when the store was made. It
            runs on the engine that the store was made with, where this computer has that, else with a warning.
        num_heads: attention heads, where a place is given and its files do not tell.
        k: neighbours of each query.
        name: which array of the store to search, one vector an image. None takes "cls", or the only one that there is.
        method: "exact"; "ann", by the index; "auto", exact up to a million rows, beyond by the index where there is one
            that fits.
        index: folder of the index; None is where `foveal index` puts it, beside the store.
        precision: of an exact search; changes its time, not its answer.
        device: of an exact search.

    Raises:
        FovealError: a row that the store lacks, a model that is not the store's, k beyond the store, or, for "ann", no
            index or one of another store.
        BadImageError: a picture that cannot be decoded.

    Example:
        >>> found = search_store(FeatureStore.open("features"), ["row:3"], k=5)  # doctest: +SKIP
        >>> found.uris[0]  # doctest: +SKIP
        ['cats/9.jpg', 'cats/2.jpg', 'dogs/1.jpg', 'cats/5.jpg', 'cats/1.jpg']
    """
    check_method(method)
    if not queries:
        raise FovealError("no queries; give pictures, or rows of the store such as row:0")
    open_device(device)
    name = vector_name(store, name)
    numbers = torch.tensor([row_number(store, query) for query in queries])
    own = bool((numbers >= 0).any())
    if not 1 <= k <= len(store) - own:
        itself = ", a row not counted among its own neighbours" if own else ""
        raise FovealError(f"k={k} neighbours in a store of {len(store)} rows{itself}; choose 1 to {len(store) - own}")
    opened: Model | None = None
    if bool((numbers < 0).any()):
        opened = model if isinstance(model, Model) else open_store_model(store, model, num_heads=num_heads)
    features = _query_features(store, name, queries, numbers, opened)
    found, how = search_features(
        store, features, k=k + own, name=name, method=method, index=index, precision=precision, device=device
    )
    if own:
        found = without_self(found, numbers)
    return SearchResult(tuple(queries), found.indices.numpy(), found.similarities.numpy(), uris_of(store, found), how)


def search_features(
    store: FeatureStore,
    features: Tensor,
    *,
    k: int,
    name: str,
    method: Method = "auto",
    index: str | Path | None = None,
    precision: SearchPrecision = "fp32",
    device: str = "cpu",
) -> tuple[Neighbours, str]:
    """Find the rows of a store that are most similar to vectors, which its model made as it made the store's.

    Args:
        store: an open store.
        features: (Q, D).
        k: neighbours of each.
        name: see `vector_name`.
        method: see `search_store`.
        index: see there.
        precision: see there.
        device: see there.

    Returns:
        The neighbours, and the line that says how they were found.
    """
    check_method(method)
    chosen, how = _choose(store, name, method, index_folder(store, name) if index is None else Path(index))
    database = database_of(store, name)
    if chosen is None:
        return search_exact(features, database, k=k, precision=precision, device=device), how
    return chosen.search(features, database, k=k), how


def check_method(method: str) -> None:
    """Refuse a method that there is not."""
    if method not in get_args(Method):
        raise FovealError(f"method='{method}' is not known; choose {', '.join(get_args(Method))}")


def vector_name(store: FeatureStore, name: str | None) -> str:
    """Return the name of an array with one vector an image; FovealError where there is none or no choice."""
    vectors = [one for one in store.names if len(store.shape(one)) == 1]
    if name is None:
        if "cls" in vectors or len(vectors) == 1:
            return "cls" if "cls" in vectors else vectors[0]
        raise FovealError(
            f"{store.path} has {', '.join(store.names)}; name a token with one vector an image by --token"
        )
    if name not in vectors:
        raise FovealError(
            f"token {name!r} cannot be searched in {store.path}: one vector an image have "
            f"{', '.join(vectors) or 'none of its arrays; extract cls or mean'}{nearest(name, vectors)}"
        )
    return name


def database_of(store: FeatureStore, name: str) -> Database:
    """Return one array of a store as what can be searched."""

    def blocks(size: int) -> Iterator[Tensor]:
        for block in store.blocks(name, rows_per_block=size, reuse=True):
            yield torch.from_numpy(block)

    def read(numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(store.read(name, numbers))

    (width,) = store.shape(name)
    return Database(num_rows=len(store), width=width, blocks=blocks, read=read)


def identity_of(store: FeatureStore, name: str) -> dict[str, Any]:
    """Return what an index must agree in with the store: stamp, images, rows, and the sha256 of the array's shards."""
    contents = []
    for shard in range(store.card.num_shards):
        files = (read_done(store.path, shard) or {"files": {}})["files"]
        contents.append({file: facts["sha256"] for file, facts in files.items() if file.startswith(f"{name}.")})
    return {
        "token": name,
        "num_rows": len(store),
        "image_set": store.card.image_set["hash"],
        "stamp": store.stamp,
        "contents": hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest(),
    }


def index_folder(store: FeatureStore, name: str) -> Path:
    """Return where the index of one array lies unless another place is given: beside the store."""
    path = Path(os.path.abspath(store.path))
    return path.with_name(f"{path.name}.{name}.index")


def stored_images(store: FeatureStore, rows: Sequence[int]) -> ImageSet:
    """Return the images that rows of a store were made from, where they were then."""
    return ImageSet(store.rows.take(pa.array(rows, pa.int64())), root=Path(store.card.image_set["root"]))


def _choose(store: FeatureStore, name: str, method: Method, folder: Path) -> tuple[Index | None, str]:
    """Return the index to use, None for an exact search, and the line that says so."""
    exact = f"exact search of {len(store):,} rows"
    if method == "exact" or (method == "auto" and len(store) <= EXACT_ROWS):
        return None, exact
    if method == "auto" and not folder.exists():
        return None, f"{exact}; foveal index {store.path} makes a faster way"
    try:
        index = Index.open(folder, identity=identity_of(store, name))
    except FovealError as error:
        if method == "ann":
            raise
        return None, f"{exact}, not by the index: {error}"
    recall = index.card["recall"]
    return index, (
        f"search of {len(store):,} rows by the index {folder}, recall@{recall['k']} {recall['value']:.3f} "
        f"on {recall['num_queries']} queries"
    )


def row_number(store: FeatureStore, query: ImageLike) -> int:
    """Return the row that a query names, or -1 for a picture; FovealError for what is neither."""
    if not isinstance(query, str) or not query.startswith((ROW, URI)):
        if isinstance(query, str | Path) and not Path(query).exists():
            near = nearest(str(query).partition(":")[0] + ":", (ROW, URI)) if ":" in str(query) else ""
            raise FovealError(f"{query} does not exist; give an image file, or row:NUMBER or uri:NAME{near}")
        return -1
    value = query[len(ROW) :]
    if query.startswith(ROW):
        if not value.isdecimal() or int(value) >= len(store):
            raise FovealError(f"{query}: {store.path} has the rows 0 to {len(store) - 1}")
        return int(value)
    places = pc.indices_nonzero(pc.equal(store.rows.column("uri"), value)).to_pylist()
    if not places:
        raise FovealError(f"{query} is not in {store.path}; its uris look like {store.rows.column('uri')[0].as_py()!r}")
    return int(places[0])


def _query_features(
    store: FeatureStore, name: str, queries: Sequence[ImageLike], numbers: Tensor, model: Model | None
) -> Tensor:
    """Return (Q, D) features: of pictures by the model, as the store's were made; of rows from the store."""
    features = torch.empty(len(queries), *store.shape(name))
    known = numbers >= 0
    features[known] = torch.from_numpy(store.read(name, numbers[known].numpy()))
    pictures = [query for query, number in zip(queries, numbers.tolist(), strict=True) if number < 0]
    if pictures and model is not None:
        features[~known] = encode_queries(store, name, pictures, model)
    return features


def encode_queries(store: FeatureStore, name: str, pictures: Sequence[ImageLike], model: Model) -> Tensor:
    """Return one vector a picture, (Q, D), made as those of an array of a store; FovealError for another model."""
    check_model(store, model)
    preprocess = Preprocess.from_stamp(store.stamp["preprocessing"])
    token, _, layer = name.partition(".layer")
    parts = []
    engine: Engine | None = None
    for start in range(0, len(pictures), store.stamp["batch_size"]):
        arrays = [_prepared(preprocess, picture) for picture in pictures[start : start + store.stamp["batch_size"]]]
        engine = engine or store_engine(store, model, arrays)
        layers = [int(layer)] if layer else None
        found = encode_arrays(engine, arrays, tokens=[token], layers=layers, patch_size=model.card.backbone.patch_size)
        parts.append(found[name])
    return torch.cat(parts)


def _prepared(preprocess: Preprocess, picture: ImageLike) -> np.ndarray:
    try:
        return preprocess(picture)
    except BadImageError as error:
        name = picture if isinstance(picture, str | Path) else "a query"
        raise BadImageError(error.reason, str(error) if str(name) in str(error) else f"{name}: {error}") from error


def uris_of(store: FeatureStore, found: Neighbours) -> list[list[str]]:
    """Return the uris of rows that were found, for each query."""
    column = store.rows.column("uri")
    return [column.take(pa.array(numbers)).to_pylist() for numbers in found.indices.tolist()]
