"""The picture of patch features: principal components as colours, after the figure of the DINOv2 paper.

Source: arXiv 2304.07193, figures 1 and 9: a first PCA over all patches, of which the positive side of the first
component is taken for foreground; a second PCA over the foreground of all images jointly; its first three components
are red, green and blue. Differences: which side is foreground is decided by a rule (see `foreground`), and the range of
a colour is given by percentiles, so that one odd patch does not dim the others.

Shapes: M rows, D width, grid_h x grid_w patches, which may differ from image to image.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.pictures import bands, enlarged, picture_grid
from foveal.features.seen import SeenImage

logger = logging.getLogger(__name__)

PERCENTILES = (1.0, 99.0)  # of a component, between which its colour runs
_ROWS_AT_A_TIME = 8192  # in float64: 100 MB for the widest backbone


class PCA(NamedTuple):
    """A fitted PCA: mean (D,), components (k, D) of length 1, variances (k,) in falling order; all float64."""

    mean: Tensor
    components: Tensor
    variances: Tensor

    def project(self, rows: Tensor) -> Tensor:
        """Map (..., D) to (..., k) float64."""
        parts = rows.reshape(-1, rows.shape[-1]).split(_ROWS_AT_A_TIME)
        values = torch.cat([(part.double() - self.mean) @ self.components.T for part in parts])
        return values.view(*rows.shape[:-1], len(self.components))


def fit_pca(rows: Tensor | Iterable[Tensor], *, num_components: int = 3) -> PCA:
    """Fit an exact PCA by the eigenvectors of the float64 covariance.

    The covariance is gathered block by block, so that beyond the rows themselves memory is D x D numbers and a block.
    The sign of each component is set so that its entry of largest magnitude is positive: the same rows give the same
    picture. Where the rows span fewer dimensions, the missing components are zero with variance zero.

    Args:
        rows: (M, D) float, M >= 1; or several of them, which are read once and fitted jointly.
        num_components: k.

    Raises:
        FovealError: no rows, or rows that are not finite.
    """
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for part in [rows] if isinstance(rows, Tensor) else rows:
        if part.ndim != 2:
            raise FovealError(f"PCA of an array {tuple(part.shape)}; give rows (rows, width)")
        for block in part.split(_ROWS_AT_A_TIME) if len(part) else []:
            if not block.isfinite().all():
                raise FovealError("features hold NaN or infinity; the model that made them has diverged")
            block = block.double()
            block_mean = block.mean(dim=0)
            centred = block - block_mean
            # The exact merge of two means and two scatter matrices (Chan, Golub and LeVeque, 1979).
            shift, share = block_mean - mean, len(block) / (count + len(block))
            scatter = scatter + centred.T @ centred + torch.outer(shift, shift) * (count * share)
            mean, count = mean + shift * share, count + len(block)
    if not count:
        raise FovealError("PCA of no rows; give at least one row (rows, width)")
    variances, vectors = torch.linalg.eigh(scatter / count)
    noise = 1e-12 * (variances.sum() + mean.square().sum() + 1e-300)  # of the mean squared length
    variances, components = variances.flip(0)[:num_components].clamp(min=0), vectors.T.flip(0)[:num_components]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    components = components * largest.sign() * (variances > noise)[:, None]
    missing = num_components - len(components)
    if missing > 0:
        components = torch.cat([components, components.new_zeros(missing, components.shape[1])])
        variances = torch.cat([variances, variances.new_zeros(missing)])
    return PCA(mean, components, torch.where(components.any(dim=1), variances, 0.0))


def foreground(patches: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """Split patches by the sign of their first principal component, and return the side that is foreground.

    Which side is foreground PCA cannot tell. Objects stand in the middle more often than at the border, so the side
    whose share of the inner patches exceeds its share of the border patches is taken; on a tie, the smaller side, then
    the positive one. One component and one side serve all images jointly.

    Args:
        patches: for each image (grid_h, grid_w, D) float.

    Returns:
        For each image (grid_h, grid_w) bool; all True where no patches differ.

    Raises:
        FovealError: no image, wrong shapes, or features that are not finite.
    """
    _check(patches)
    pca = fit_pca((image.flatten(0, 1) for image in patches), num_components=1)
    first = [pca.project(image)[..., 0] for image in patches]
    if not any(values.any() for values in first):
        return [torch.ones_like(values, dtype=torch.bool) for values in first]
    positive = torch.cat([(values > 0).flatten() for values in first]).double()
    inner = torch.cat([_is_inner(*values.shape).flatten() for values in first])
    lead = _share(positive, inner) - _share(positive, ~inner)
    if lead == 0:
        lead = 0.5 - float(positive.mean())
    return [values > 0 if lead >= 0 else values < 0 for values in first]


def patch_colours(
    patches: Sequence[Tensor] | Tensor,
    *,
    keep_foreground: bool = True,
    percentiles: tuple[float, float] = PERCENTILES,
) -> list[np.ndarray]:
    """Colour patches by their first three principal components, jointly over all images.

    Images without any foreground are coloured whole, by components of their own.

    Args:
        patches: for each image (grid_h, grid_w, D) float; grids may differ.
        keep_foreground: leave the background black and fit the components on the foreground alone.
        percentiles: of each component, shown as 0 and 255; (0, 100) is the full range.

    Returns:
        For each image (grid_h, grid_w, 3) uint8. A component without variance is shown as middle grey.

    Raises:
        FovealError: no image, wrong shapes, percentiles out of order, or features that are not finite.
    """
    _check(patches)
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise FovealError(f"percentiles={percentiles}; choose 0 <= low < high <= 100")
    everything = [torch.ones(image.shape[:2], dtype=torch.bool) for image in patches]
    return _coloured(patches, foreground(patches) if keep_foreground else everything, percentiles)


def _coloured(
    patches: Sequence[Tensor] | Tensor, masks: Sequence[Tensor], percentiles: tuple[float, float]
) -> list[np.ndarray]:
    """Colour the patches under masks (grid_h, grid_w) bool jointly; apart from them those whose masks are empty."""
    empty = [number for number, mask in enumerate(masks) if not mask.any()]
    if empty:
        full = [number for number, mask in enumerate(masks) if mask.any()]
        whole = [torch.ones_like(masks[number]) for number in empty]
        apart = _coloured([patches[number] for number in empty], whole, percentiles)
        joint = []
        if full:
            joint = _coloured([patches[n] for n in full], [masks[n] for n in full], percentiles)
        found = dict(zip((*empty, *full), (*apart, *joint), strict=True))
        return [found[number] for number in range(len(masks))]
    pca = fit_pca(image[mask] for image, mask in zip(patches, masks, strict=True))
    values = [pca.project(image[mask]).numpy() for image, mask in zip(patches, masks, strict=True)]
    bottom, top = np.percentile(np.concatenate(values), percentiles, axis=0)
    spread = top - bottom
    colours = []
    for mask, inside in zip(masks, values, strict=True):
        scaled = np.where(spread > 0, (inside - bottom) / np.where(spread > 0, spread, 1.0), 0.5)
        image = np.zeros((*mask.shape, 3), dtype=np.uint8)
        image[mask.numpy()] = np.rint(scaled.clip(0, 1) * 255)
        colours.append(image)
    return colours


def pca_picture(images: Sequence[SeenImage], *, keep_foreground: bool = True, cell_size: int = 224) -> Image.Image:
    """Draw each picture, as the model saw it, above its patch features in colour.

    Args:
        images: see `foveal.features.seen.see`; of any sizes.
        keep_foreground: see `patch_colours`.
        cell_size: longer side of one picture in pixels.

    Raises:
        FovealError: no image, `cell_size` below 1, or features that are not finite.
    """
    patches = [image.patches for image in images]
    if keep_foreground:
        _check(patches)
        masks = foreground(patches)
        if empty := [
            image.name or str(i) for i, (image, mask) in enumerate(zip(images, masks, strict=True)) if not mask.any()
        ]:
            logger.warning(
                "no foreground beside the other pictures in %s; shown whole, in colours of their own "
                "(--keep-background shows all patches of all)",
                ", ".join(empty),
            )
        colours = _coloured(patches, masks, PERCENTILES)
    else:
        colours = patch_colours(patches, keep_foreground=False)
    pictures = [[image.pixels for image in images], [enlarged(colour, cell_size) for colour in colours]]
    labels = [[image.name for image in images], ["" for _ in images]]
    return picture_grid(bands(pictures), labels=bands(labels), cell_size=cell_size)


def _check(patches: Sequence[Tensor] | Tensor) -> None:
    shapes = [tuple(image.shape) for image in patches]
    if not shapes or any(len(shape) != 3 or 0 in shape or shape[2] != shapes[0][2] for shape in shapes):
        raise FovealError(f"patches have shapes {shapes[:4]}; expected (grid_h, grid_w, width) for at least one image")


def _is_inner(grid_h: int, grid_w: int) -> Tensor:
    """Return (grid_h, grid_w) bool: True in the middle half of both sides."""
    rows, columns = (((torch.arange(n) + 0.5) / n - 0.5).abs() < 0.25 for n in (grid_h, grid_w))
    return rows[:, None] & columns


def _share(chosen: Tensor, among: Tensor) -> float:
    return float(chosen[among].mean()) if among.any() else 0.0
