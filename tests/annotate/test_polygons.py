"""Masks as polygons and runs, against COCO's own code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from foveal.annotate.formats.polygons import extent_of, joined, mask_of, rings_of
from foveal.annotate.formats.runs import check_mask, coco_runs, pixels_of, run_lengths
from foveal.annotate.types import Box, Mask
from foveal.errors import FovealError

# pycocotools hands its masks to NumPy in a way that is going out of use.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 11)))


def test_outlines_run_along_the_edges_of_pixels() -> None:
    pixels = np.zeros((5, 7), bool)
    pixels[1:4, 2:6] = True
    assert {tuple(point) for point in rings_of(pixels)[0].tolist()} == {(2, 1), (6, 1), (6, 4), (2, 4)}
    assert extent_of(pixels) == Box(2, 1, 4, 3)
    assert rings_of(np.zeros((5, 7), bool)) == []


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_outlines_cover_the_same_pixels_with_holes_and_parts(pixels: np.ndarray) -> None:
    rings = rings_of(pixels)
    if not rings:
        assert not pixels.any()
        return
    assert (mask_of(rings, *pixels.shape, where="").pixels() == pixels).all()
    one = rings[0]
    for ring in rings[1:]:
        one = joined(one, ring)
    assert (mask_of([one], *pixels.shape, where="").pixels() == pixels).all()


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_runs_are_those_of_cocos_own_code(pixels: np.ndarray) -> None:
    columns = run_lengths(pixels.T.ravel())
    assert coco_runs(Mask.of(pixels), where="").tolist() == columns.tolist()
    theirs = coco.frPyObjects({"size": list(pixels.shape), "counts": columns.tolist()}, *pixels.shape)
    assert (coco.decode(theirs).astype(bool) == pixels).all()
    assert (pixels_of(run_lengths(pixels.ravel()), *pixels.shape, where="") == pixels).all()


def test_long_runs_and_negative_differences_are_read() -> None:
    pixels = np.zeros((900, 1100), bool)
    pixels[:, 400:700] = True
    pixels[3, 701] = pixels[5, 703] = True
    assert coco_runs(Mask.of(pixels), where="").tolist() == run_lengths(pixels.T.ravel()).tolist()


@pytest.mark.parametrize(
    "mask",
    [
        Mask(5, 7, Mask.of(np.ones((5, 8), bool)).counts),
        Mask(5, 7, b"0ooooooo1"),
        Mask(5, 7, b"\x20\x21"),
        Mask(100_000, 100_000, b"0"),
        Mask(0, 7, b""),
        Mask(5, 7, b""),
        Mask(5, 7, Mask.of(np.eye(5, 7, dtype=bool)).counts[:-1]),
    ],
)
def test_runs_that_would_leave_the_mask_are_refused_before_decoding(mask: Mask) -> None:
    with pytest.raises(FovealError, match="one: "):
        check_mask(mask, where="one")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9, -100.0])
def test_polygons_far_outside_are_refused(bad: float) -> None:
    with pytest.raises(FovealError, match="one: a polygon with points outside the picture of 7 x 5 pixels"):
        mask_of([np.array([[0, 0], [bad, 1], [2, 2]])], 5, 7, where="one")


def test_outlines_that_take_all_memory_together_are_refused() -> None:
    zigzag = np.tile(np.array([[0.0, 0.0], [7.0, 5.0]]), (30_000, 1))
    with pytest.raises(FovealError, match="longer than 10000000 pixels"):
        mask_of([zigzag] * 20, 5, 7, where="x")
