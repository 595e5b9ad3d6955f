"""What the explorer's page works with: a feature store, pictures of its images as the model saw them, and maps of it.

Shapes: N rows of the store; grid_h x grid_w patches; D width.
"""

import hashlib
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image

from foveal.errors import BadImageError, FovealError, ImageSetError
from foveal.features.geometry import Geometry
from foveal.features.heatmap import HeatMaps
from foveal.features.lookup import search_features, stored_images
from foveal.features.origin import check_model
from foveal.features.pca import PCA, PERCENTILES, fit_pca
from foveal.features.pictures import displayed
from foveal.features.search import Neighbours, without_self
from foveal.features.store import FeatureStore
from foveal.images.decode import decode
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import Preprocess
from foveal.serve.limits import decode_limits
from foveal.serve.loaded import check_searchable
from foveal.serve.problems import Problem
from foveal.serve.service import Service
from foveal.serve.web.encode import encoded

logger = logging.getLogger(__name__)

THUMBNAIL, UPLOAD = 160, 640  # pixels
_PAUSE_S = 0.05  # between two looks whether requests are being answered
_SAMPLE = 256  # images that the colours of components are scaled on
_MOST_COMPONENTS = 12  # of which colours are made where the store has no PCA
_ROWS_OF_MAP = 20_000  # on which the map's PCA is fitted
_MOST_UPLOADS = 16
_MOST_THUMBNAILS = 64 * 1024 * 1024  # bytes


class Upload(NamedTuple):
    """A dropped picture as the model saw it, a JPEG; its vector (D,), its patches (grid_h, grid_w, D)."""

    picture: bytes
    vector: np.ndarray
    patches: np.ndarray


class Explorer:
    """A store, and the model that made it.

    Args:
        store: with cls or mean for neighbours; with patches for heat maps and colours.
        service: its model encodes dropped pictures.
        out: folder in which selections are saved.
        name: of the set, for people; None is that of the store's folder.

    Raises:
        FovealError: the store is of another model, or has no vector that can be searched.
    """

    def __init__(self, store: FeatureStore, service: Service, out: Path, *, name: str | None = None) -> None:
        check_model(store, service.loaded.model)
        self.store, self.service, self.out = store, service, out
        self.name = store.path.resolve().name if name is None else name
        self.token = check_searchable(store)
        self.images = stored_images(store, range(len(store)))
        self.preprocess = Preprocess.from_stamp(store.stamp["preprocessing"])
        self.heat = HeatMaps(store) if "patches" in store.names else None
        self.revision = hashlib.sha256(store.card.to_json().encode() + str(len(store)).encode()).hexdigest()[:16]
        self._uploads: OrderedDict[str, Upload] = OrderedDict()
        self._thumbnails: OrderedDict[int, bytes] = OrderedDict()
        self._num_bytes, self._lock = 0, threading.Lock()
        self._scaling = threading.Lock()

    def maps(self) -> HeatMaps:
        """Return what compares patches; Problem where the store has none."""
        if self.heat is None:
            raise Problem(
                409,
                "no_patches",
                f"{self.store.path.name} holds no patches, which heat maps, colours and finding parts need; make "
                "one with: foveal extract IMAGES --model MODEL --tokens cls,patches --pca 64 --dtype int8 --out STORE",
            )
        return self.heat

    def measure(self, ended: threading.Event) -> None:
        """Measure the lengths of patches ahead of the first search, whenever no request is being answered.

        What is not measured when a search comes, or could not be, the search measures itself, and says what is wrong.
        """
        try:
            for _ in () if self.heat is None else self.heat.measure():
                while self.service.admission.requests and not ended.is_set():
                    ended.wait(_PAUSE_S)
                if ended.is_set():
                    return
        except FovealError as error:
            logger.warning("the lengths of patches: %s", error)

    def check_row(self, row: int) -> None:
        """Refuse a row that the store does not have."""
        if not 0 <= row < len(self.store):
            raise Problem(404, "no_such_image", f"image {row}; there are 0 to {len(self.store) - 1}", field="row")

    def thumbnail(self, row: int) -> bytes:
        """Return a small JPEG of what the model saw of an image; the last 64 MB of them are kept."""
        with self._lock:
            if row in self._thumbnails:
                self._thumbnails.move_to_end(row)
                return self._thumbnails[row]
        made = self.picture(row, THUMBNAIL)
        with self._lock:
            if row not in self._thumbnails:
                self._thumbnails[row] = made
                self._num_bytes += len(made)
            while self._num_bytes > _MOST_THUMBNAILS:
                self._num_bytes -= len(self._thumbnails.popitem(last=False)[1])
        return made

    def picture(self, row: int, side: int) -> bytes:
        """Return what the model saw of an image as a JPEG of at most so many pixels a side.

        Raises:
            Problem: 410, the image is gone, damaged, or has changed since its features were made.
        """
        self.check_row(row)
        uri = self.images.uri(row)
        try:
            data = self.images.read(row)
            wanted = self.store.rows.column("sha256")[row].as_py()
            if wanted is not None and hashlib.sha256(data).hexdigest() != wanted:
                raise BadImageError("changed", f"{uri} has changed since its features were made; make a new store")
            # Within the limits of extraction, which has opened it; those of the server are for what others send.
            pixels = decode(data, channels=self.preprocess.channels, min_short_side=2 * side)
        except BadImageError as error:
            raise Problem(410, error.reason, str(error), field="row") from error
        return self._seen(pixels, side)

    def _seen(self, pixels: np.ndarray, side: int) -> bytes:
        """Return the part of a picture that the model saw, in the proportions of its patches, as a JPEG."""
        geometry = Geometry.of(self.preprocess, *pixels.shape[:2])
        corners = geometry.to_original(np.array([[-0.5, -0.5], np.subtract(geometry.seen[::-1], 0.5)])) + 0.5
        left, top, right, bottom = np.rint(corners).astype(int).ravel().tolist()
        seen = Image.fromarray(displayed(pixels)).crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        scale = min(side, max(seen.size)) / max(geometry.seen)
        height, width = (max(1, round(length * scale)) for length in geometry.seen)
        return encoded(seen.resize((width, height), reducing_gap=2.0), side)

    def neighbours(self, row: int, count: int) -> Neighbours:
        """Return the images most similar to one of them, without itself."""
        self.check_row(row)
        count = min(count, len(self.store) - 1)
        if count < 1:
            return Neighbours(torch.empty(1, 0), torch.empty(1, 0, dtype=torch.int64))
        query = torch.from_numpy(self.store.read(self.token, [row]))
        found, _ = search_features(self.store, query, k=count + 1, name=self.token)
        return without_self(found, torch.tensor([row]))

    def similar(self, vector: np.ndarray, count: int) -> Neighbours:
        """Return the images most similar to a vector (D,)."""
        found, _ = search_features(
            self.store, torch.from_numpy(vector)[None], k=min(count, len(self.store)), name=self.token
        )
        return found

    async def upload(self, data: bytes) -> tuple[str, Upload]:
        """Encode a dropped picture as the store's own images were, and keep it under a name.

        Raises:
            Problem: it cannot be read, is too large, or another model was loaded since.
        """
        loaded = self.service.loaded
        check_model(self.store, loaded.model)

        def shown() -> bytes:
            limits = decode_limits(self.service.settings)
            return self._seen(decode(data, channels=self.preprocess.channels, limits=limits), UPLOAD)

        tokens = await self.service.tokens(loaded, data, self.preprocess, field="image")
        vector = tokens.cls if self.token == "cls" else tokens.patches.mean(axis=(0, 1))
        made = Upload(await self.service.aside(shown), vector, tokens.patches)
        name = secrets.token_hex(8)
        self._uploads[name] = made
        while len(self._uploads) > _MOST_UPLOADS:
            self._uploads.popitem(last=False)
        return name, made

    def uploaded(self, name: str) -> Upload:
        """Return a dropped picture; Problem where it is not kept any more."""
        found = self._uploads.get(name)
        if found is None:
            raise Problem(404, "upload_gone", "this picture is not kept any more; drop it again", field="upload")
        return found

    def query(self, row: int | None, upload: str | None, patch: int) -> np.ndarray:
        """Return the vector (D,) of one patch of an image of the store, or of a dropped one."""
        maps = self.maps()
        if upload is None:
            assert row is not None
            self.check_row(row)
            return maps.vector(row, patch)
        patches = self.uploaded(upload).patches
        flat = patches.reshape(-1, patches.shape[-1])
        if patch >= len(flat):
            raise Problem(422, "invalid_value", f"patch {patch}; this picture has 0 to {len(flat) - 1}", field="patch")
        found: np.ndarray = flat[patch]
        return found

    def colours(self, row: int, first: int) -> np.ndarray:
        """Return three components of the patches of an image as colours, (grid_h, grid_w, 3) uint8.

        The scale of each component is that of a sample of the store, so that colours mean the same on all images.
        """
        self.check_row(row)
        with self._scaling:  # the first request makes it, and those beside it wait
            low, high = self._ranges
        if first + 3 > len(low):
            raise Problem(
                422, "invalid_value", f"components from {first}; there are {len(low)}, three at a time", field="first"
            )
        values = self._components(self.store.read("patches", [row]))[0, ..., first : first + 3]
        low, high = low[first : first + 3], high[first : first + 3]
        return np.rint(255 * np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)).astype(np.uint8)

    @property
    def num_components(self) -> int:
        """Components that colours can show; those of the store's own PCA where it has one."""
        self.maps()
        return min(self.store.shape("patches")[2], 64 if self.store.card.is_reduced("patches") else _MOST_COMPONENTS)

    def _components(self, patches: np.ndarray) -> np.ndarray:
        if self._patch_pca is None:
            return patches[..., : self.num_components]
        return self._patch_pca.project(torch.from_numpy(patches)).float().numpy()

    @cached_property
    def _sample(self) -> np.ndarray:
        self.maps()
        rows = np.unique(np.linspace(0, len(self.store) - 1, _SAMPLE).astype(np.int64))
        return self.store.read("patches", rows)

    @cached_property
    def _patch_pca(self) -> PCA | None:
        if self.store.card.is_reduced("patches"):
            return None
        return fit_pca(torch.from_numpy(self._sample).flatten(0, 2), num_components=self.num_components)

    @cached_property
    def _ranges(self) -> tuple[np.ndarray, np.ndarray]:
        values = self._components(self._sample).reshape(-1, self.num_components)
        del self._sample  # hundreds of megabytes of a large model
        low, high = np.percentile(values, PERCENTILES, axis=0)
        return low, high

    @cached_property
    def classes(self) -> list[str] | None:
        """The labels of the images in the order of the alphabet, where the store knows any."""
        found = pc.unique(self.store.rows.column("label").drop_null()).to_pylist()
        return sorted(found) or None

    @cached_property
    def pca_map(self) -> np.ndarray:
        """The two main components of the searched vectors, (N, 2) float32 within 0..1."""
        rows = np.unique(np.linspace(0, len(self.store) - 1, _ROWS_OF_MAP).astype(np.int64))
        fitted = fit_pca(torch.from_numpy(self.store.read(self.token, rows)), num_components=2)
        blocks = [fitted.project(torch.from_numpy(block)).numpy() for block in self.store.blocks(self.token)]
        return _within_one(np.concatenate(blocks))

    @cached_property
    def umap_map(self) -> np.ndarray:
        """The same by UMAP (McInnes et al., arXiv 1802.03426) on cosines; takes a minute for ten thousand images."""
        from umap import UMAP

        vectors = self.store.read(self.token)
        fitted = UMAP(n_neighbors=min(15, max(2, len(vectors) - 1)), metric="cosine", random_state=0, n_jobs=1)
        return _within_one(fitted.fit_transform(vectors))

    def save(self, name: str, rows: Sequence[int]) -> Path:
        """Save some images as an image set below the output folder and return its folder.

        Raises:
            Problem: 409, the name is in use; 400, it cannot be written.
        """
        for row in rows:
            self.check_row(row)
        folder = self.out / name
        # Only what an image set knows: numbers of rows belong to the store.
        chosen = self.images.subset(np.unique(np.asarray(rows, np.int64)))
        chosen = ImageSet(chosen.rows.drop_columns(["row", "id"]), root=chosen.root)
        try:
            chosen.save(folder)
        except ImageSetError as error:
            taken = folder.exists()
            raise Problem(
                409 if taken else 400, "name_in_use" if taken else "not_saved", str(error), field="name"
            ) from error
        return folder


def has_umap() -> bool:
    """Say whether maps by UMAP can be made: the extra `explore` is installed."""
    from importlib.util import find_spec

    return find_spec("umap") is not None


def _within_one(points: np.ndarray) -> np.ndarray:
    """Scale points (N, 2) into the unit square, both axes by the same factor."""
    low = points.min(axis=0)
    size = float((points.max(axis=0) - low).max())
    return np.ascontiguousarray((points - low) / (size or 1.0), np.float32)
