"""Effective rank and distances to neighbours, against numbers known by hand and a second implementation."""

import math

import numpy as np
import pytest
import torch

from foveal.errors import FovealError
from foveal.features.spread import neighbour_distance, rank_me


def test_rank_by_hand() -> None:
    """Singular values 3 and 1: p = (3/4, 1/4)."""
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rank_me(torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]])) == pytest.approx(math.exp(entropy), abs=1e-12)


def test_rank_equals_that_of_numpy_and_does_not_change_with_scale_or_rotation() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(7, 5)) * np.array([1, 0.5, 0.1, 1e-3, 2.0]) + 0.3
    p = np.linalg.svd(rows, compute_uv=False)
    p /= p.sum()
    expected = math.exp(-(p * np.log(p)).sum())
    turned = rows @ np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for found in (rows, turned, 1000 * rows):
        assert rank_me(torch.from_numpy(found)) == pytest.approx(expected, rel=1e-9)


def test_one_direction_has_rank_1() -> None:
    rows = torch.tensor([[1.0, 2.0, 2.0]]) * torch.tensor([[1.0], [-3.0], [0.5], [0.0]])
    assert rank_me(rows) == pytest.approx(1, abs=1e-6)


def test_distance_by_hand() -> None:
    """Angles 0, 60 and 180 degrees: chords of 60, 60 and 120 degrees; lengths do not count."""
    angles = torch.tensor([0.0, 60.0, 180.0]).double().deg2rad()
    rows = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.2]])
    assert neighbour_distance(rows) == pytest.approx((1 + 1 + math.sqrt(3)) / 3, abs=1e-9)


def test_twins_are_at_0_and_near_twins_are_told_from_them() -> None:
    rows = torch.ones(4, 6, dtype=torch.float64)
    assert neighbour_distance(rows) == 0
    rows[:, 0] += 1e-9 * torch.arange(4)
    assert 1e-10 < neighbour_distance(rows) < 1e-9


@pytest.mark.parametrize("measure", [rank_me, neighbour_distance])
def test_features_that_say_nothing_are_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(FovealError, match=r"features of shape \(3,\); give \(images, width\)"):
        measure(torch.ones(3))
    with pytest.raises(FovealError, match="NaN or infinity"):
        measure(torch.tensor([[1.0, torch.inf], [0.0, 1.0]]))


def test_no_rank_of_nothing() -> None:
    with pytest.raises(FovealError, match="all zero"):
        rank_me(torch.zeros(2, 3))
    with pytest.raises(FovealError, match="of 2 images or more"):
        neighbour_distance(torch.ones(1, 3))
