import numpy as np
import pytest

from foveal.errors import FovealError
from foveal.features.geometry import Geometry
from foveal.images.preprocess import Preprocess

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SHAPES = [(33, 51), (51, 33), (28, 28), (7, 90), (1, 3), (100, 101), (101, 57)]
SETTINGS = [
    {"mode": "crop", "crop_size": 28, "resize_size": 32},
    {"mode": "crop", "crop_size": 35, "resize_size": 35},
    {"mode": "resize"},
    {"mode": "resize", "resize_size": 45},
    {"mode": "pad"},
    {"mode": "pad", "resize_size": 45},
    {"mode": "crop", "crop_size": (28, 56), "resize_size": (32, 60)},
    {"mode": "resize", "resize_size": (42, 35)},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_seen_has_the_shape_that_preprocessing_makes(shape: tuple[int, int], settings: dict) -> None:
    preprocess = Preprocess(patch_size=7, **settings)
    geometry = Geometry.of(preprocess, *shape)
    array = preprocess(np.zeros((*shape, 3), dtype=np.uint8))
    assert array.shape == (3, *geometry.seen)
    assert geometry.grid == (array.shape[1] // 7, array.shape[2] // 7)
    assert geometry.patch_centres().shape == (*geometry.grid, 2)


@pytest.mark.parametrize(
    ("mode", "shape"), [("crop", (35, 61)), ("crop", (60, 35)), ("pad", (33, 51)), ("pad", (29, 34))]
)
def test_without_resizing_every_seen_pixel_comes_from_where_geometry_says(mode: str, shape: tuple[int, int]) -> None:
    number = np.arange(1, shape[0] * shape[1] + 1).reshape(shape)
    coded = np.stack([number % 256, number // 256, np.full(shape, 255)], axis=2).astype(np.uint8)
    sizes = {"crop_size": 28, "resize_size": 35} if mode == "crop" else {}
    preprocess = Preprocess(mode=mode, patch_size=7, **sizes, **PLAIN)  # type: ignore[arg-type]
    geometry = Geometry.of(preprocess, *shape)
    assert geometry.resized == shape
    seen = np.rint(preprocess(coded) * 255).astype(int)
    places = np.argwhere(seen[2] == 255)  # not the zeros of a padded border
    assert len(places) == (28 * 28 if mode == "crop" else shape[0] * shape[1])
    x, y = geometry.to_original(places[:, ::-1]).T
    np.testing.assert_array_equal(y * shape[1] + x + 1, (seen[0] + 256 * seen[1])[tuple(places.T)])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(120, 75), (75, 120), (19, 31)], ids=str)
def test_ramps_are_found_where_geometry_says(shape: tuple[int, int], settings: dict) -> None:
    """Resizing keeps a ramp a ramp: its value at a patch centre tells where in the original that point was."""
    step = 255 // max(shape)
    ramps = np.zeros((*shape, 3), dtype=np.uint8)
    ramps[..., 0], ramps[..., 1] = step * np.arange(shape[1]), step * np.arange(shape[0])[:, None]
    preprocess = Preprocess(patch_size=7, **settings, **PLAIN)
    geometry = Geometry.of(preprocess, *shape)
    centre = 7 * np.arange(1, max(geometry.grid) - 1) + 3  # an odd patch has a middle pixel; the border is left out
    rows, columns = centre[centre < geometry.seen[0] - 7], centre[centre < geometry.seen[1] - 7]
    x, y = np.moveaxis(geometry.patch_centres()[1:-1, 1:-1], -1, 0)
    seen = preprocess(ramps)[:, rows][:, :, columns] * 255 / step
    error = np.stack([seen[0] - x, seen[1] - y])
    assert np.abs(error).max() <= 1 / step + 0.01  # values are rounded once in each direction of resizing
    assert abs(error.mean()) < 0.2  # half a pixel off would be 0.5


def test_points_go_there_and_back() -> None:
    geometry = Geometry.of(Preprocess(mode="pad", resize_size=45, patch_size=7), 33, 51)
    points = np.array([[0.0, 0.0], [50.0, 32.0], [12.5, -0.5]])
    np.testing.assert_allclose(geometry.to_original(geometry.to_seen(points)), points, atol=1e-12)


def test_patch_centres_by_hand() -> None:
    geometry = Geometry.of(Preprocess(mode="resize", resize_size=14, patch_size=7), 28, 28)
    # halved: seen pixel 3 covers the original's 6 and 7, so its centre is 6.5
    assert geometry.patch_centres()[0, 1].tolist() == [20.5, 6.5]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_patch_under_its_own_centre_is_found(settings: dict) -> None:
    geometry = Geometry.of(Preprocess(patch_size=7, **settings), 33, 52)
    for row, line in enumerate(geometry.patch_centres()):
        for column, (x, y) in enumerate(line):
            if -0.5 <= x < 51.5 and -0.5 <= y < 32.5:  # the middle of a padded patch may be on the very edge
                assert geometry.patch_at(x, y) == (row, column)


@pytest.mark.parametrize("point", [(-0.51, 0), (0, -1), (51, 0), (50.6, 0), (0, 33), (float("nan"), 3), (1e9, 3)])
def test_points_outside_are_refused_with_the_range(point: tuple[float, float]) -> None:
    geometry = Geometry.of(Preprocess(mode="resize", patch_size=7), 33, 51)
    with pytest.raises(
        FovealError, match=r"outside the picture of 51 x 33 pixels; choose X in 0\.\.50 and Y in 0\.\.32"
    ):
        geometry.patch_at(*point)
    assert geometry.patch_at(0, 0) == (0, 0)
    assert geometry.patch_at(50, 32) == (4, 6)


def test_points_that_are_cropped_away_are_refused_with_the_range() -> None:
    geometry = Geometry.of(Preprocess(crop_size=28, resize_size=28, patch_size=7), 28, 56)  # keeps X 14..41
    with pytest.raises(FovealError, match=r"13,5 of the picture of 56 x 28 .* X from 13\.5 to 41\.5 and Y from 0\.0"):
        geometry.patch_at(13, 5)
    with pytest.raises(FovealError, match=r"cut away .* or fit='resize'"):
        geometry.patch_at(42, 5)
    assert geometry.patch_at(14, 5) == (0, 0)
    assert geometry.patch_at(41, 27) == (3, 3)
