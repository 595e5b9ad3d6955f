"""Heat maps: the cosine of one vector to every patch of a feature store, on the features as they are stored.

A stored patch is v = mean + s components^T c, with codes c and one scale s (int8), or s = 1 (float); without a PCA the
mean is zero and the components are the axes. For a query q of length 1, with m = components mean and z = components q:

    q . v = mean . q + s (c . z)
    |v|^2 = |mean|^2 + 2 s (c . m) + s^2 |c|^2

so that a patch costs one product with its codes. The norms depend on the store alone and are kept.

Shapes: N rows of the store; grid_h x grid_w patches, P in all; D width; K stored channels.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np

from foveal.errors import FovealError
from foveal.features.store import FeatureStore

_BLOCK = 2048  # patches whose codes are widened to float32 at a time: they stay in the cache of a core
_CHUNK = 32_768  # patches between two looks at the interpreter, for which threads would wait on each other


class Found(NamedTuple):
    """The best patch of every image: cosines (N,) float32, and numbers of patches (N,) int64, row by row."""

    scores: np.ndarray
    patches: np.ndarray


class _Query(NamedTuple):
    constant: np.float32  # mean . q
    codes: np.ndarray  # (K,) float32, components q


class HeatMaps:
    """Compares vectors with the patches of a store.

    Args:
        store: with the array.
        name: of the array of patches.

    Raises:
        FovealError: the store has no such array; it says how to make one.

    Example:
        >>> maps = HeatMaps(FeatureStore.open("features"))  # doctest: +SKIP
        >>> maps.maps(maps.vector(3, 17), [3, 4]).shape  # doctest: +SKIP
        (2, 16, 16)
    """

    def __init__(self, store: FeatureStore, name: str = "patches") -> None:
        if name not in store.names:
            raise FovealError(
                f"{store.path} has {', '.join(store.names)} and no {name!r}, which heat maps need; make a store with "
                "foveal extract IMAGES --model MODEL --tokens cls,patches --pca 64 --dtype int8 --out STORE"
            )
        self.store, self.name = store, name
        self.grid: tuple[int, int] = store.shape(name)[:2]  # type: ignore[assignment]
        self._projection = store.projection(name)
        self._num_patches = self.grid[0] * self.grid[1]
        self._chunk = max(1, _CHUNK // self._num_patches)  # images at a time
        if self._projection is not None:
            mean = self._projection.mean
            self._mean_codes, self._mean_square = self._projection.components @ mean, np.float32(mean @ mean)
        self.width = store.shape(name)[2] if self._projection is None else len(self._projection.mean)

    def vector(self, row: int, patch: int) -> np.ndarray:
        """Return one patch of the store, (D,) float32; FovealError where there is no such row or patch."""
        if not 0 <= patch < self._num_patches:
            raise FovealError(f"patch {patch}; an image of {self.store.path} has 0 to {self._num_patches - 1}")
        codes = self.store.read(self.name, [row])[0].reshape(-1, self.store.shape(self.name)[2])[patch]
        return codes if self._projection is None else self._projection.invert(codes)

    def maps(self, vector: np.ndarray, rows: np.ndarray | list[int]) -> np.ndarray:
        """Return the cosines of a vector (D,) to the patches of some rows, (len(rows), grid_h, grid_w) float32."""
        query, wanted = self._query(vector), self.store.numbers(rows)
        found = np.empty((len(wanted), self._num_patches), np.float32)
        for start, values, scale in self.store.as_stored(self.name):
            here = np.flatnonzero((wanted >= start) & (wanted < start + len(values)))
            for some in np.array_split(here, -(-len(here) // self._chunk)) if len(here) else ():
                local = wanted[some] - start
                found[some] = self._cosines(query, values[local], None if scale is None else scale[local], wanted[some])
        return np.clip(found, -1, 1).reshape(-1, *self.grid)

    def scan(self, vector: np.ndarray) -> Found:
        """Return the most similar patch of every image of the store for a vector (D,)."""
        query, norms = self._query(vector), self.inverse_norms
        found = Found(np.empty(len(self.store), np.float32), np.empty(len(self.store), np.int64))

        def compare(start: int, values: np.ndarray, scale: np.ndarray | None) -> None:
            rows = slice(start, start + len(values))
            dots = self._cosines(query, values, scale, rows)
            found.patches[rows] = best = dots.argmax(axis=1)
            found.scores[rows] = dots[np.arange(len(dots)), best]

        assert len(norms) == len(self.store)
        self._each_chunk(compare)
        np.clip(found.scores, -1, 1, out=found.scores)
        return found

    @cached_property
    def inverse_norms(self) -> np.ndarray:
        """1 / |v| of every patch, (N, P) float32, zero where a patch is zero: 1 KB an image of 256 patches."""
        norms = np.empty((len(self.store), self._num_patches), np.float32)

        def measure(start: int, values: np.ndarray, scale: np.ndarray | None) -> None:
            norms[start : start + len(values)] = self._inverse_norms(values, scale)

        self._each_chunk(measure)
        return norms

    def _each_chunk(self, work: Callable[[int, np.ndarray, np.ndarray | None], None]) -> None:
        """Call `work` with a first row, codes (n, ...) and scales of every chunk of the store, in several threads."""
        parts = list(self.store.as_stored(self.name))

        def run(worker: int) -> None:
            for start, values, scale in parts[worker :: _workers()]:
                for first in range(0, len(values), self._chunk):
                    here = slice(first, first + self._chunk)
                    work(start + first, values[here], None if scale is None else scale[here])

        with ThreadPoolExecutor(_workers()) as pool:
            list(pool.map(run, range(_workers())))

    def _products(self, codes: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Return the products of codes (n, grid_h, grid_w, K) with (K,), (n, P) float32."""
        flat = codes.reshape(-1, codes.shape[-1])
        found = np.empty(len(flat), np.float32)
        wide = np.empty((min(_BLOCK, len(flat)), flat.shape[1]), np.float32)
        for first in range(0, len(flat), _BLOCK):
            block = flat[first : first + _BLOCK]
            np.copyto(wide[: len(block)], block)
            np.dot(wide[: len(block)], query, out=found[first : first + len(block)])
        return found.reshape(len(codes), self._num_patches)

    def _cosines(
        self, query: _Query, codes: np.ndarray, scale: np.ndarray | None, rows: np.ndarray | slice
    ) -> np.ndarray:
        """Return the cosines of some rows, (n, P) float32."""
        dots = self._products(codes, query.codes)
        if scale is not None:
            dots *= scale.reshape(dots.shape)
        dots += query.constant
        known = self.__dict__.get("inverse_norms")  # for a few rows the others' need not be waited for
        dots *= self._inverse_norms(codes, scale) if known is None else known[rows]
        return dots

    def _inverse_norms(self, codes: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
        """Return 1 / |v| of codes (n, grid_h, grid_w, K) with their scales, (n, P) float32; zero for a zero vector."""
        wide = codes.astype(np.float32).reshape(len(codes), self._num_patches, -1)
        s = np.float32(1) if scale is None else scale.reshape(wide.shape[:2])
        squares = np.einsum("npk,npk->np", wide, wide) * (s * s)
        if self._projection is not None:
            squares += 2 * s * (wide @ self._mean_codes) + self._mean_square
        found = np.zeros_like(squares)
        np.divide(1, np.sqrt(np.maximum(squares, 0)), out=found, where=squares > 0)
        return found

    def _query(self, vector: np.ndarray) -> _Query:
        vector = np.asarray(vector, np.float32)
        if vector.shape != (self.width,):
            raise FovealError(f"a query of shape {vector.shape}; patches of {self.store.path} are of {self.width}")
        length = float(np.linalg.norm(vector))
        unit = vector / np.float32(length) if length > 0 else vector
        if self._projection is None:
            return _Query(np.float32(0), unit)
        return _Query(np.float32(self._projection.mean @ unit), self._projection.components @ unit)


def _workers() -> int:
    return min(os.cpu_count() or 1, 8)
