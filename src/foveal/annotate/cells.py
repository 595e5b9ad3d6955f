"""A picture as a grid of cells, neighbours bound more strongly where their features and colours are alike.

Shapes: H W pixels that the model sees; h w cells, `cells_per_patch` along the side of a patch; K components.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from foveal.errors import FovealError
from foveal.features.pca import fit_pca
from foveal.features.seen import SeenImage

_SEED = 1e3  # how firmly a cell that was pointed at keeps its value, beside bonds of at most 1
_ERROR = 1e-3  # root mean square, of beliefs
_WEAKEST = 1e-4  # bond across the sharpest border


@dataclass(frozen=True)
class Sharpness:
    """How masks follow the edges of a picture.

    Attributes:
        cells_per_patch: cells along the side of a patch; more are finer and slower.
        num_components: of the picture's patch features that are kept.
        steepness: how fast a bond weakens as two cells differ, in units of the mean difference of neighbours.
        colour_share: 0 looks at features alone, 1 at colours alone.
        trust: how firmly a cell keeps to what was believed of it, beside a bond of 1 to each neighbour.
        guide_radius: cells around a pixel whose colours decide how it shares the values of its cells.
        guide_noise: difference of colours, 0 to 1, below which there is no edge.
    """

    cells_per_patch: int = 2
    num_components: int = 64
    steepness: float = 1.0
    colour_share: float = 0.5
    trust: float = 0.03
    guide_radius: int = 4
    guide_noise: float = 0.03

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        counts = self.cells_per_patch, self.num_components, self.guide_radius
        if min(counts) < 1 or not 0 <= self.colour_share <= 1 or min(self.trust, self.guide_noise) <= 0:
            raise FovealError(
                f"{self}: cells, components and radius must be at least 1, colour_share from 0 to 1, trust and "
                "guide_noise above 0"
            )


class Cells:
    """The cells of one picture, made once; every answer after that is quick.

    Args:
        seen: see `foveal.features.seen.see`.
        sharpness: the settings.

    Attributes:
        shape: h, w.
        features: (h, w, K) float32 of length 1, principal components of the picture's own patches about their mean.
    """

    def __init__(self, seen: SeenImage, sharpness: Sharpness = Sharpness()) -> None:
        self.geometry, self.sharpness, self._pixels = seen.geometry, sharpness, seen.pixels
        grid_h, grid_w = seen.geometry.grid
        self.shape = grid_h * sharpness.cells_per_patch, grid_w * sharpness.cells_per_patch
        components = _components(seen.patches, sharpness.num_components)
        enlarged = F.interpolate(components.permute(2, 0, 1)[None], self.shape, mode="bilinear", align_corners=False)
        self.features: np.ndarray = F.normalize(enlarged[0], dim=0).permute(1, 2, 0).contiguous().numpy()
        small = cv2.resize(seen.pixels, self.shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        self._colours = small
        self._right, self._down = self._bonds(cv2.cvtColor(small, cv2.COLOR_RGB2LAB))

    def of_patches(self, values: np.ndarray) -> np.ndarray:
        """Return the values (h, w) of cells between those of patches, (grid_h, grid_w) float32."""
        found: np.ndarray = cv2.resize(values.astype(np.float32), self.shape[::-1], interpolation=cv2.INTER_LINEAR)
        return found

    def settled(self, belief: np.ndarray, seeds: np.ndarray | None = None) -> np.ndarray:
        """Return beliefs after neighbours that are bound have come to agree, (h, w) float32 from 0 to 1.

        It is the chance that a walker, who steps along bonds and stops with a rate of `trust`, stops where the belief
        says yes, or meets a cell that was pointed at as wanted before one that was not.

        Args:
            belief: (h, w) from 0 to 1.
            seeds: (h, w), above 0 where the picture was pointed at as wanted, below 0 where not; None is nowhere.

        Source: Grady, "Multilabel random walker image segmentation using prior models", CVPR 2005.
        """
        try:
            from scipy.sparse import diags_array
            from scipy.sparse.linalg import cg
        except ModuleNotFoundError as error:
            raise FovealError("masks from features need SciPy: pip install 'foveal[annotate]'") from error
        right, down, width = self._right.ravel(), self._down.ravel(), self.shape[1]
        degree = right + down
        degree[1:] += right[:-1]
        degree[width:] += down[:-width]
        firm = np.full(len(degree), self.sharpness.trust)
        wanted = belief.ravel() * self.sharpness.trust
        if seeds is not None:
            firm[seeds.ravel() != 0] += _SEED
            wanted = wanted + _SEED * (seeds.ravel() > 0)
        diagonals = [degree + firm, -right[:-1], -right[:-1], -down[:-width], -down[:-width]]
        system = diags_array(diagonals, offsets=[0, 1, -1, width, -width], format="csr")
        inverse = diags_array([1 / (degree + firm)], offsets=[0], format="csr")
        enough = _ERROR * self.sharpness.trust * np.sqrt(len(degree))  # no mode decays more slowly than trust
        found, _ = cg(system, wanted, x0=belief.ravel(), M=inverse, rtol=0, atol=enough, maxiter=500)
        return np.clip(found, 0, 1).astype(np.float32).reshape(self.shape)

    def to_original(self, values: np.ndarray, *, guided: bool = True) -> np.ndarray:
        """Return the values of cells for each pixel of the original picture, (height, width) float32.

        What the model does not see is 0.

        Args:
            values: (h, w) from 0 to 1.
            guided: between the cells, values follow the colours of the picture; else they are enlarged bilinearly.

        Source: He and Sun, "Fast guided filter", arXiv 1505.00996, in colour.
        """
        seen = self._guided(values) if guided else cv2.resize(values, self._pixels.shape[1::-1])
        height, width = self.geometry.original
        corners = np.array([[0, 0], [width - 1, 0], [0, height - 1]], np.float64)
        origin, right, below = self.geometry.to_seen(corners)
        across, along = (right - origin) / max(width - 1, 1), (below - origin) / max(height - 1, 1)
        path = np.stack([across, along, origin], axis=1)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        found: np.ndarray = cv2.warpAffine(seen, path, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        columns = np.arange(width) * across[0] + origin[0]
        rows = np.arange(height) * along[1] + origin[1]
        found[(rows < -0.5) | (rows > seen.shape[0] - 0.5)] = 0
        found[:, (columns < -0.5) | (columns > seen.shape[1] - 0.5)] = 0
        return found

    def _bonds(self, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the bonds to the right and lower neighbour, (h, w) float64, 0 where there is none."""
        share = self.sharpness.colour_share
        bonds = []
        for axis in (1, 0):
            parts = [np.square(np.diff(values, axis=axis)).sum(axis=2) for values in (self.features, colours)]
            features, colour = (part / (part.mean() + 1e-12) for part in parts)
            difference = (1 - share) * features + share * colour
            bond = np.exp(-self.sharpness.steepness * difference) + _WEAKEST
            bonds.append(np.pad(bond.astype(np.float64), [(0, axis == 0), (0, axis == 1)]))
        return bonds[0], bonds[1]

    def _blurred(self, array: np.ndarray) -> np.ndarray:
        """Return means over the window of the guide."""
        size = 2 * self.sharpness.guide_radius + 1
        found: np.ndarray = cv2.blur(array, (size, size), borderType=cv2.BORDER_REFLECT)
        return found

    @cached_property
    def _guide(self) -> tuple[np.ndarray, np.ndarray]:
        """Means (h, w, 3) and covariances (h, w, 3, 3) of the colours, the same for all values that they guide."""
        colours, shape = self._colours, self.shape
        means = self._blurred(colours)
        products = self._blurred((colours[..., :, None] * colours[..., None, :]).reshape(*shape, 9))
        covariance = products.reshape(*shape, 3, 3) - means[..., :, None] * means[..., None, :]
        return means, covariance + self.sharpness.guide_noise**2 * np.eye(3, dtype=np.float32)

    def _guided(self, values: np.ndarray) -> np.ndarray:
        """Return values (H, W) that follow the picture's colours between cells, which hold (h, w)."""
        (means, covariance), mean_value = self._guide, self._blurred(values.astype(np.float32))
        together = self._blurred(self._colours * values[..., None].astype(np.float32)) - means * mean_value[..., None]
        slope = np.linalg.solve(covariance, together[..., None])[..., 0].astype(np.float32)
        offset = mean_value - (slope * means).sum(axis=2)
        height, width = self._pixels.shape[:2]
        slopes, offsets = (cv2.resize(self._blurred(part), (width, height)) for part in (slope, offset))
        found: np.ndarray = (slopes * (self._pixels.astype(np.float32) / 255)).sum(axis=2) + offsets
        return np.clip(found, 0, 1)


def _components(patches: torch.Tensor, count: int) -> torch.Tensor:
    """Return (grid_h, grid_w, K) float32: patches of length 1 in the principal directions of the picture."""
    unit = F.normalize(patches.float(), dim=-1)
    rows = unit.flatten(0, 1)
    pca = fit_pca(rows, num_components=min(count, *rows.shape))
    return pca.project(unit).float()
