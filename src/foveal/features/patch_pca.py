"""PCA of patch tokens for a feature store: fitted once on a sample that depends on the image set alone."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveal.errors import BadImageError, FovealError
from foveal.features.extract import Model
from foveal.features.pca import PCA, fit_pca
from foveal.features.tokens import array_names, encode_arrays
from foveal.files import publish_new, sha256_of, staging_of
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import Preprocess

FOLDER, CARD = "pca", "pca.json"
NUM_IMAGES, PATCHES_PER_IMAGE = 256, 128


def fit_patch_pca(
    folder: Path,
    model: Model,
    images: ImageSet,
    *,
    num_components: int,
    layers: Sequence[int] | None,
    preprocess: Preprocess,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fit one PCA for each array of patches and put them into `folder`, unless another process was faster.

    At most 256 images of the set are drawn, and 128 patches of each, by a generator keyed with the hash of the set:
    every process draws the same. Images that cannot be read are passed over.

    Raises:
        FovealError: no image of the sample can be read, or it has fewer patches than components are wanted.
    """
    generator = np.random.Generator(np.random.Philox(key=int(images.hash[:32], 16)))
    chosen = np.sort(generator.permutation(len(images))[:NUM_IMAGES]).tolist()
    samples: dict[str, list[np.ndarray]] = {name: [] for name in array_names(["patches"], layers)}
    for start in range(0, len(chosen), batch_size):
        arrays = []
        for row in chosen[start : start + batch_size]:
            try:
                arrays.append(preprocess(images.decode(row, channels=preprocess.channels)))
            except BadImageError:
                continue  # listed with its reason by the shard that it belongs to
        if arrays:
            encoded = encode_arrays(
                model.engine, arrays, tokens=["patches"], layers=layers, patch_size=preprocess.patch_size
            )
            for name, patches in encoded.items():
                flat = patches.flatten(1, 2).numpy()
                keep = [generator.permutation(flat.shape[1])[:PATCHES_PER_IMAGE] for _ in flat]
                samples[name] += [image[places] for image, places in zip(flat, keep, strict=True)]
        if progress:
            progress(min(start + batch_size, len(chosen)), len(chosen))
    fitted = {name: _fit(name, parts, num_components) for name, parts in samples.items()}
    _save(folder, fitted)


def _fit(name: str, parts: list[np.ndarray], num_components: int) -> tuple[PCA, float]:
    """Return a PCA and the share of the variance that it keeps."""
    rows = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
    if len(rows) < num_components:
        raise FovealError(
            f"pca={num_components}, and the sample for {name} has {len(rows)} patches of readable images; "
            "choose fewer components or more images"
        )
    fitted = fit_pca(torch.from_numpy(rows), num_components=num_components)
    total = float(rows.astype(np.float64).var(axis=0).sum())
    return fitted, float(fitted.variances.sum()) / total if total > 0 else 1.0


def _save(folder: Path, fitted: dict[str, tuple[PCA, float]]) -> None:
    staging = staging_of(folder)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        for name, (pca, _) in fitted.items():
            np.save(staging / f"{name}.mean.npy", pca.mean.numpy().astype(np.float32))
            np.save(staging / f"{name}.components.npy", pca.components.numpy().astype(np.float32))
        card = {
            "variance_kept": {name: round(share, 6) for name, (_, share) in fitted.items()},
            "sha256": {path.name: sha256_of(path) for path in sorted(staging.iterdir())},
        }
        (staging / CARD).write_text(json.dumps(card, indent=2) + "\n")
        publish_new(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_card(folder: Path) -> dict[str, Any]:
    """Return the card of a fitted PCA: the variance kept, by array, and the sha256 of the files."""
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text())
        return card
    except (OSError, ValueError) as error:
        raise FovealError(
            f"{folder / CARD} cannot be read ({error}); restore it, or extract into a new store"
        ) from error


class Projection:
    """A PCA out of a store: maps vectors (..., D) float32 to (..., K) and back.

    Attributes:
        mean: (D,) float32.
        components: (K, D) float32, orthonormal.
    """

    def __init__(self, store: Path, name: str) -> None:
        try:
            self.mean: np.ndarray = np.load(store / FOLDER / f"{name}.mean.npy")
            self.components: np.ndarray = np.load(store / FOLDER / f"{name}.components.npy")
        except (OSError, ValueError) as error:
            raise FovealError(
                f"the PCA of {name} in {store / FOLDER} cannot be read ({error}); "
                "restore the folder, or extract into a new store"
            ) from error

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Return the coordinates of vectors (..., D) in the components, (..., K) float32."""
        return (vectors - self.mean) @ self.components.T

    def invert(self, coordinates: np.ndarray) -> np.ndarray:
        """Return the vectors (..., D) float32 that have these coordinates and no part outside the components."""
        return coordinates @ self.components + self.mean
