"""The picture of patch features: principal components as colours, after the figure of the DINOv2 paper.

Source: arXiv 2304.07193, figures 1 and 9: a first PCA over all patches, of which the positive side of the first
component is taken for foreground; a second PCA over the foreground of all images jointly; its first three components
are red, green and blue. Differences: which side is foreground is decided by a rule (see `foreground`), and the range of
a colour is given by percentiles, so that one odd patch does not dim the others.

Shapes: M rows, D width, B images, grid_h x grid_w patches.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.extract import Model, list_of
from foveal.images.preprocess import ImageLike, Mode


class PCA(NamedTuple):
    """A fitted PCA: mean (D,), components (k, D) of length 1, variances (k,) in falling order; all float64."""

    mean: Tensor
    components: Tensor
    variances: Tensor

    def project(self, rows: Tensor) -> Tensor:
        """Map (..., D) to (..., k) float64."""
        return (rows.double() - self.mean) @ self.components.T


def fit_pca(rows: Tensor, *, num_components: int = 3) -> PCA:
    """Fit an exact PCA by the eigenvectors of the float64 covariance.

    The sign of each component is set so that its entry of largest magnitude is positive: the same rows give the same
    picture. Where the rows span fewer dimensions, the missing components are zero with variance zero.

    Args:
        rows: (M, D) float, M >= 1.
        num_components: k.

    Raises:
        FovealError: no rows, or rows that are not finite.
    """
    if rows.ndim != 2 or rows.shape[0] < 1:
        raise FovealError(f"PCA of an array {tuple(rows.shape)}; give at least one row (rows, width)")
    if not rows.isfinite().all():
        raise FovealError("features hold NaN or infinity; the model that made them has diverged")
    rows = rows.double()
    mean = rows.mean(dim=0)
    centred = rows - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    variances, components = variances.flip(0)[:num_components].clamp(min=0), vectors.T.flip(0)[:num_components]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    noise = 1e-12 * (rows.square().sum(dim=1).mean() + 1e-300)
    components = components * largest.sign() * (variances > noise)[:, None]
    missing = num_components - len(components)
    if missing > 0:
        components = torch.cat([components, components.new_zeros(missing, rows.shape[1])])
        variances = torch.cat([variances, variances.new_zeros(missing)])
    return PCA(mean, components, torch.where(components.any(dim=1), variances, 0.0))


def foreground(patches: Tensor) -> Tensor:
    """Split patches by the sign of their first principal component, and return the side that is foreground.

    Which side is foreground PCA cannot tell. Objects stand in the middle more often than at the border, so the side
    whose share of the inner patches exceeds its share of the border patches is taken; on a tie, the smaller side, then
    the positive one.

    Args:
        patches: (B, grid_h, grid_w, D) float.

    Returns:
        (B, grid_h, grid_w) bool; all True where the patches do not differ.
    """
    first = fit_pca(patches.flatten(0, 2), num_components=1).project(patches)[..., 0]
    if not first.any():
        return torch.ones_like(first, dtype=torch.bool)
    positive = first > 0
    inner = _is_inner(*positive.shape[1:]).expand_as(positive)
    lead = _share(positive, inner) - _share(positive, ~inner)
    if lead == 0:
        lead = 0.5 - float(positive.double().mean())
    return positive if lead >= 0 else first < 0


def patch_colours(
    patches: Tensor, *, keep_foreground: bool = True, percentiles: tuple[float, float] = (1.0, 99.0)
) -> Tensor:
    """Colour patches by their first three principal components, jointly over all images.

    Args:
        patches: (B, grid_h, grid_w, D) float.
        keep_foreground: leave the background black and fit the components on the foreground alone.
        percentiles: of each component, shown as 0 and 255; (0, 100) is the full range.

    Returns:
        (B, grid_h, grid_w, 3) uint8. A component without variance is shown as middle grey.

    Raises:
        FovealError: wrong shape, percentiles out of order, or features that are not finite.
    """
    if patches.ndim != 4 or 0 in patches.shape:
        raise FovealError(f"patches have shape {tuple(patches.shape)}; expected (images, grid_h, grid_w, width)")
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise FovealError(f"percentiles={percentiles}; choose 0 <= low < high <= 100")
    shown = foreground(patches) if keep_foreground else torch.ones(patches.shape[:3], dtype=torch.bool)
    rows = patches[shown]
    values = fit_pca(rows).project(rows)
    bounds = torch.from_numpy(np.percentile(values.numpy(), [low, high], axis=0))
    spread = bounds[1] - bounds[0]
    scaled = torch.where(spread > 0, (values - bounds[0]) / spread.where(spread > 0, 1.0), 0.5)
    colours = torch.zeros(*patches.shape[:3], 3, dtype=torch.uint8)
    colours[shown] = (scaled.clamp(0, 1) * 255).round().to(torch.uint8)
    return colours


def pca_picture(
    model: Model,
    images: ImageLike | Iterable[ImageLike],
    *,
    size: int | None = None,
    fit: Mode = "crop",
    keep_foreground: bool = True,
    cell_size: int = 224,
    batch_size: int = 8,
) -> Image.Image:
    """Draw the originals, as the model saw them, above their patch features in colour.

    Args:
        model: a loaded model.
        images: paths, Pillow images or (H, W, 3) uint8 arrays.
        size: see `Model.extract`; larger gives finer pictures.
        fit: see `Model.extract`.
        keep_foreground: see `patch_colours`.
        cell_size: height of one picture in pixels.
        batch_size: images at a time.
    """
    if cell_size < 1:
        raise FovealError(f"cell_size={cell_size}; it must be at least 1")
    pictures = list_of(images)
    seen = [_denormalise(model, model.preprocessing(size=size, fit=fit)(picture)) for picture in pictures]
    features = model.extract(pictures, size=size, fit=fit, batch_size=batch_size)
    colours = patch_colours(features.patches, keep_foreground=keep_foreground).numpy()
    height, width = seen[0].shape[:2]
    cell = (max(1, round(cell_size * width / height)), cell_size)
    grid = Image.new("RGB", (cell[0] * len(seen), 2 * cell[1]))
    for column, (original, coloured) in enumerate(zip(seen, colours, strict=True)):
        left = column * cell[0]
        grid.paste(Image.fromarray(original).resize(cell, Image.Resampling.BICUBIC), (left, 0))
        grid.paste(Image.fromarray(coloured).resize(cell, Image.Resampling.NEAREST), (left, cell[1]))
    return grid


def _denormalise(model: Model, array: np.ndarray) -> np.ndarray:
    """Turn a preprocessed (3, H, W) float32 array back into (H, W, 3) uint8."""
    mean, std = (np.asarray(values).reshape(-1, 1, 1) for values in (model.card.mean, model.card.std))
    return np.rint(np.clip(array * std + mean, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def _is_inner(grid_h: int, grid_w: int) -> Tensor:
    """Return (grid_h, grid_w) bool: True in the middle half of both sides."""
    rows, columns = (((torch.arange(n) + 0.5) / n - 0.5).abs() < 0.25 for n in (grid_h, grid_w))
    return rows[:, None] & columns


def _share(chosen: Tensor, among: Tensor) -> float:
    return float(chosen[among].double().mean()) if among.any() else 0.0
