"""Resized positional embeddings against the interpolation formulas, written out in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from foveal.backbone.vit import VisionTransformer

TOLERANCE = 1e-5  # float32 against float64 on values of order 1
GRIDS = [(1, 1), (1, 7), (3, 4), (5, 7), (6, 8), (7, 6), (9, 5), (13, 11), (20, 2)]
SIDE = 7


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _offset_matrix(size: int) -> np.ndarray:
    """(size, SIDE): bicubic, A = -0.75, source coordinates by the factor (size + 0.1) / SIDE, borders repeated."""
    matrix = np.zeros((size, SIDE))
    for target in range(size):
        source = (target + 0.5) * SIDE / (size + 0.1) - 0.5
        base = int(np.floor(source))
        for tap in range(base - 1, base + 3):
            matrix[target, min(max(tap, 0), SIDE - 1)] += _cubic(np.array(source - tap), -0.75)
    return matrix


def _antialias_matrix(size: int) -> np.ndarray:
    """(size, SIDE): bicubic, A = -0.5, the kernel widened by SIDE / size when shrinking, weights renormalised."""
    scale = SIDE / size
    centres = (np.arange(size) + 0.5) * scale
    distance = (np.arange(SIDE)[None] + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = _cubic(distance, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("mode", "matrix"), [("offset", _offset_matrix), ("antialias", _antialias_matrix)])
@torch.no_grad()
def test_resized_embedding_follows_the_formula(
    random_network: Callable[..., VisionTransformer],
    mode: str,
    matrix: Callable[[int], np.ndarray],
    grid: tuple[int, int],
) -> None:
    network = random_network(image_size=14 * SIDE, pos_embed_resize=mode)
    stored = network.pos_embed[0, 1:].double().numpy().reshape(SIDE, SIDE, -1)
    expected = np.einsum("hy,wx,yxd->hwd", matrix(grid[0]), matrix(grid[1]), stored)
    cls, patches = network.position(*grid)
    np.testing.assert_allclose(patches[0].numpy(), expected.reshape(grid[0] * grid[1], -1), atol=TOLERANCE, rtol=0)
    assert torch.equal(cls, network.pos_embed[:, :1])


@pytest.mark.parametrize("mode", ["offset", "antialias"])
@torch.no_grad()
def test_stored_size_is_left_untouched(random_network: Callable[..., VisionTransformer], mode: str) -> None:
    network = random_network(image_size=14 * SIDE, pos_embed_resize=mode)
    assert torch.equal(network.position(SIDE, SIDE)[1], network.pos_embed[:, 1:])


@torch.no_grad()
def test_same_number_of_patches_in_another_shape_is_resized(
    random_network: Callable[..., VisionTransformer],
) -> None:
    network = random_network(image_size=14 * 6)
    assert not torch.allclose(network.position(4, 9)[1], network.pos_embed[:, 1:], atol=0.1)
