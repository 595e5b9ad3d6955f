"""Heat maps: the cosine of one vector to every patch of a feature store, on the features as they are stored.

A stored patch is v = mean + s components^T c, with codes c and one scale s (int8), or s = 1 (float); without a PCA the
mean is zero and the components are the axes. For a query q of length 1, with m = components mean and z = components q:

    q . v = mean . q + s (c . z)
    |v|^2 = |mean|^2 + 2 s (c . m) + s^2 |c|^2

so that a patch costs one product with its codes. The norms depend on the store alone and are kept. int8 codes are not
widened: z is written with three digits of int8, to the precision of float32, and products of whole numbers are exact.

Shapes: N rows of the store; grid_h x grid_w patches, P in all; D width; K stored channels.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.store import FeatureStore

_CHUNK = 16_384  # patches at a time: what is computed of them stays in the cache of a core
_MOST_THREADS = 16
_MAKING = threading.Lock()
_DIGITS = (1.0, 1 / 254, 1 / 254**2)  # rounding leaves at most a half, which is 127 of the next digit


class Found(NamedTuple):
    """The best patch of every image: cosines (N,) float32, and numbers of patches (N,) int64, row by row."""

    scores: np.ndarray
    patches: np.ndarray


class _Query:
    """A vector as stored patches are multiplied with it: mean . q, and z (K,) as float32 and in digits of int8."""

    def __init__(self, constant: float, codes: np.ndarray) -> None:
        self._constant = constant
        self._codes = torch.from_numpy(np.ascontiguousarray(codes, np.float32))
        step = float(np.abs(codes).max()) / 127 or 1.0
        rest, digits = codes.astype(np.float64) / step, []
        for _ in _DIGITS:
            digits.append(np.rint(rest).clip(-127, 127))
            rest = (rest - digits[-1]) * 254
        self._digits = torch.from_numpy(np.stack(digits, axis=1).astype(np.int8))
        self._places = torch.tensor(_DIGITS) * step

    def products(self, codes: np.ndarray, scale: np.ndarray | None) -> Tensor:
        """Return q . v for codes (n, grid_h, grid_w, K) and scales, (n * P,)."""
        flat = torch.from_dlpack(codes).reshape(-1, codes.shape[-1])
        if flat.dtype == torch.int8 and _multiplies_int8():
            found = torch._int_mm(flat, self._digits).float() @ self._places
        else:
            found = flat.float() @ self._codes
        if scale is not None:
            found *= torch.from_dlpack(scale).reshape(-1)
        return found.add_(self._constant)


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
        # 1 / |v| of every patch, 1 KB an image of 256 patches, and of which rows it is known.
        self._norms = np.empty((len(store), self._num_patches), np.float32)
        self._is_measured = np.zeros(len(store), bool)

    @property
    def num_measured(self) -> int:
        """Rows of whose patches the lengths are known."""
        return int(self._is_measured.sum())

    def measure(self) -> Iterator[None]:
        """Measure the lengths of all patches, as the first scan would; whoever iterates may stop anywhere."""
        for shard in self.store.as_stored(self.name):
            for rows, codes, scale in self._chunks(*shard):
                _workers().submit(self._measured, rows, codes, scale).result()
                yield

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
                codes, scales = values[wanted[some] - start], None if scale is None else scale[wanted[some] - start]
                found[some] = self._cosines(query, wanted[some], codes, scales).numpy()
        return found.reshape(-1, *self.grid)

    def scan(self, vector: np.ndarray) -> Found:
        """Return the most similar patch of every image of the store for a vector (D,)."""
        query = self._query(vector)
        found = Found(np.empty(len(self.store), np.float32), np.empty(len(self.store), np.int64))

        def compare(start: int, values: np.ndarray, scale: np.ndarray | None) -> None:
            for rows, codes, scales in self._chunks(start, values, scale):
                best = self._cosines(query, rows, codes, scales).max(dim=1)
                found.scores[rows], found.patches[rows] = best.values.numpy(), best.indices.numpy()

        for running in [_workers().submit(compare, *shard) for shard in self.store.as_stored(self.name)]:
            running.result()
        return found

    def _chunks(
        self, start: int, values: np.ndarray, scale: np.ndarray | None
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
        """Cut a shard into rows, codes (n, grid_h, grid_w, K) and scales that stay in the cache of a core."""
        for first in range(0, len(values), self._chunk):
            codes = values[first : first + self._chunk]
            rows = slice(start + first, start + first + len(codes))
            yield rows, codes, None if scale is None else scale[first : first + self._chunk]

    def _cosines(self, query: _Query, rows: slice | np.ndarray, codes: np.ndarray, scale: np.ndarray | None) -> Tensor:
        """Return the cosines of the codes (n, grid_h, grid_w, K) of some rows, (n, P)."""
        found = query.products(codes, scale).view(-1, self._num_patches)
        return found.mul_(torch.from_numpy(self._measured(rows, codes, scale))).clamp_(-1, 1)

    def _measured(self, rows: slice | np.ndarray, codes: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
        """Return 1 / |v| of the patches of some rows, (n, P) float32, measured if unknown; zero for a zero vector."""
        if not self._is_measured[rows].all():
            wide = torch.from_dlpack(codes).reshape(-1, codes.shape[-1]).float()
            s = torch.ones(len(wide)) if scale is None else torch.from_dlpack(scale).reshape(-1)
            squares = torch.linalg.vector_norm(wide, dim=1).mul_(s).square_()
            if self._projection is not None:
                squares += (wide @ torch.from_numpy(self._mean_codes)).mul_(s).mul_(2).add_(float(self._mean_square))
            self._norms[rows] = torch.where(squares > 0, squares.rsqrt(), 0.0).view(-1, self._num_patches).numpy()
            self._is_measured[rows] = True  # last: other threads then read the numbers
        return self._norms[rows]

    def _query(self, vector: np.ndarray) -> _Query:
        vector = np.asarray(vector, np.float32)
        if vector.shape != (self.width,):
            raise FovealError(f"a query of shape {vector.shape}; patches of {self.store.path} are of {self.width}")
        length = float(np.linalg.norm(vector))
        unit = vector / np.float32(length) if length > 0 else vector
        if self._projection is None:
            return _Query(0.0, unit)
        return _Query(float(self._projection.mean @ unit), self._projection.components @ unit)


@cache
def _multiplies_int8() -> bool:
    """Say whether PyTorch multiplies int8 exactly here: some processors add two products in 16 bits, and cut them."""
    largest = torch.full((32, 64), 127, dtype=torch.int8)
    try:
        products = [torch._int_mm(sign * largest, largest[:3].T.contiguous()) for sign in (1, -1)]
    except (AttributeError, RuntimeError):  # it is not yet a public name
        return False
    return all(bool((found == sign * 64 * 127**2).all()) for sign, found in zip((1, -1), products, strict=True))


def _workers() -> ThreadPoolExecutor:
    """Return threads of which each computes alone: threads that share a small product mostly wait for each other."""
    with _MAKING:  # several threads may ask first
        return _made_workers()


@cache
def _made_workers() -> ThreadPoolExecutor:
    count = min(os.cpu_count() or 1, _MOST_THREADS)
    together, before = threading.Barrier(count + 1), torch.get_num_threads()

    def alone() -> None:
        torch.set_num_threads(1)  # of this thread, and of all that begin to compute later
        together.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="heat")
    for _ in range(count):
        pool.submit(alone)
    together.wait()
    torch.set_num_threads(before)  # those others are as they were
    return pool
