import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.features.geometry import Geometry
from foveal.features.match import Matches, match, match_picture, mutual_nearest
from foveal.features.seen import SeenImage, see
from foveal.images.preprocess import Preprocess


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_mutual_nearest_equals_the_whole_distance_matrix() -> None:
    a, b = _random(31, 5), _random(23, 5, seed=1)
    found = mutual_nearest(a, b)
    unit_a, unit_b = (torch.nn.functional.normalize(rows.double()) for rows in (a, b))
    distance = torch.cdist(unit_a, unit_b)
    expected = [
        (i, int(distance[i].argmin())) for i in range(31) if distance[:, int(distance[i].argmin())].argmin() == i
    ]
    assert 0 < len(expected) < 23
    assert list(zip(found[0].tolist(), found[1].tolist(), strict=True)) == expected
    # |a - b|^2 = 2 - 2 cos on the unit sphere
    torch.testing.assert_close(2 - 2 * found[2].double(), distance[found[0], found[1]] ** 2, atol=1e-6, rtol=0)


def test_no_rows_have_no_matches() -> None:
    for a, b in ((_random(0, 5), _random(3, 5)), (_random(3, 5), _random(0, 5))):
        assert [len(part) for part in mutual_nearest(a, b)] == [0, 0, 0]


@pytest.mark.parametrize("shift", [(0, 0), (2, 1), (-1, 3)])
def test_shift_by_whole_patches_is_found_exactly(patchwise_model: Model, shift: tuple[int, int]) -> None:
    """The network sees each patch alone, so a patch that moved has the same features, to the bit, elsewhere."""
    scene = _texture(70, 84)
    down, right = shift
    a = see(patchwise_model, scene[14 : 14 + 35, 21 : 21 + 42], size=35)
    b = see(patchwise_model, scene[14 + 7 * down : 49 + 7 * down, 21 + 7 * right : 63 + 7 * right], size=35)
    found = match(a, b, keep_foreground=False)
    assert found.num_mutual >= (5 - abs(down)) * (6 - abs(right))
    exact = found.similarity > 1 - 1e-6
    assert exact.sum() == (5 - abs(down)) * (6 - abs(right))
    np.testing.assert_array_equal(
        (found.points_a - found.points_b)[exact], np.full((exact.sum(), 2), (7.0 * right, 7.0 * down))
    )
    assert (np.diff(found.similarity) <= 0).all()
    columns, rows = (found.points_a[exact] - 3).T / 7
    assert rows.min() == max(down, 0)
    assert rows.max() == 4 + min(down, 0)
    assert columns.min() == max(right, 0)


def test_matches_are_in_the_pixels_of_the_originals(patchwise_model: Model) -> None:
    """B is A in twice the size in the middle of a wider picture, from which the centre crop cuts it out."""
    coarse = Image.fromarray(_texture(5, 5))
    scene = np.asarray(coarse.resize((28, 28), Image.Resampling.BICUBIC))
    wide = np.zeros((56, 84, 3), np.uint8)
    wide[:, 14:70] = np.asarray(coarse.resize((56, 56), Image.Resampling.BICUBIC))
    card = patchwise_model.card.model_copy(update={"resize_size": 28})
    a = see(patchwise_model, scene, size=28)
    b = see(Model(patchwise_model.engine, card), wide, size=28, fit="crop")
    found = match(a, b, keep_foreground=False)
    assert len(found.similarity) >= 12  # of 16
    np.testing.assert_allclose(found.points_b, found.points_a * 2 + 0.5 + (14, 0), atol=1e-9)


def test_foreground_alone_is_matched() -> None:
    """Two hand-made grids: an object in the middle whose patches differ, on a ground that is the same everywhere."""
    grids, inside = [], torch.zeros(6, 7, dtype=torch.bool)
    inside[1:5, 2:5] = True
    parts = _random(12, 5, seed=3) + torch.tensor([9.0, 0, 0, 0, 0])
    for seed in (4, 5):
        grid = torch.tensor([-9.0, 0, 0, 0, 0]) + 0.1 * _random(6, 7, 5, seed=seed)
        grid[inside] = parts
        grids.append(grid)
    a, b = (_seen(grid) for grid in grids)
    found = match(a, b)
    assert found.num_mutual == 12
    np.testing.assert_array_equal(found.points_a, found.points_b)
    assert match(a, b, keep_foreground=False).num_mutual > 12


def _seen(patches: Tensor) -> SeenImage:
    height, width = (7 * side for side in patches.shape[:2])
    geometry = Geometry.of(Preprocess(mode="resize", patch_size=7), height, width)
    return SeenImage(np.zeros((height, width, 3), np.uint8), patches, geometry)


def test_suppression_keeps_the_better_of_near_matches() -> None:
    line = torch.eye(5)[None].repeat(1, 1, 1)  # five patches in a row, all different
    noise = torch.tensor([0.5, 0.1, 0.3, 0.0, 0.4])[:, None]
    other = line + noise * torch.ones(5) / 5**0.5
    everything = match(_seen(line), _seen(other), keep_foreground=False)
    assert ((everything.points_a[:, 0] - 3) / 7).tolist() == [3, 1, 2, 4, 0]
    thinned = match(_seen(line), _seen(other), keep_foreground=False, nms=2)
    assert ((thinned.points_a[:, 0] - 3) / 7).tolist() == [3, 1]
    assert thinned.num_mutual == 5
    assert len(match(_seen(line), _seen(other), keep_foreground=False, max_matches=3).similarity) == 3


def test_matches_near_each_other_in_b_alone_are_suppressed_too() -> None:
    a, b = torch.zeros(1, 5, 3), torch.zeros(1, 5, 3)
    a[0, 0, 0] = a[0, 4, 1] = a[0, 2, 2] = 1
    b[0, 0, 0] = b[0, 1, 1] = b[0, 2, 2] = 1
    found = match(_seen(a), _seen(b), keep_foreground=False, nms=1.5)
    assert found.num_mutual == 3
    assert ((found.points_b[:, 0] - 3) / 7).tolist() == [0, 2]


def test_constant_pictures_and_single_patches_have_one_match_at_most(patchwise_model: Model) -> None:
    flat = see(patchwise_model, np.full((30, 50, 3), 90, np.uint8), size=28)
    assert match(flat, flat).num_mutual == 1  # all patches are equal, and the first is the nearest of each
    single = see(patchwise_model, _texture(7, 7), size=7)
    assert match(single, single).num_mutual == 1


def test_a_picture_without_foreground_has_no_match_and_is_drawn() -> None:
    a, b = torch.zeros(3, 3, 2), torch.full((3, 3, 2), -1.0)
    a[1, 1] = 5
    found = match(_seen(a), _seen(b))
    assert [len(part) for part in found[:3]] == [0, 0, 0]
    assert match_picture(_seen(a), _seen(b), found, cell_size=60).size[0] == 60 + 3 + 60


def test_picture_has_its_lines_where_the_points_are() -> None:
    a, b = _seen(torch.zeros(2, 4, 3)), _seen(torch.zeros(4, 2, 3))  # 28 x 14 and 14 x 28 pixels
    at = Matches(np.array([[3.0, 3.0]]), np.array([[10.0, 24.0]]), np.ones(1, np.float32), 7)
    picture = match_picture(a, b, at, cell_size=280)
    assert picture.size == (280 + 17 + 140, 16 + 280)
    pixels = np.asarray(picture)[16:]
    assert (pixels[:70] == 255)[:, :280].all()  # A is 140 high and in the middle
    for x, y in ((35, 70 + 35), (297 + 105, 245)):
        assert pixels[y, x].max() > 60  # neither black picture nor white ground
        assert pixels[y, x].min() < 200
    assert (pixels[198:205, 288] < 255).any()  # the line is here in the middle of the gap,
    assert (pixels[:195, 288] == 255).all()  # and nowhere else
    assert (pixels[208:, 288] == 255).all()
    assert picture.tobytes() == match_picture(a, b, at, cell_size=280).tobytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nms": -1}, "nms=-1; give a distance in patches, 0 or more"),
        ({"nms": float("nan")}, "nms=nan"),
        ({"max_matches": 0}, "max_matches=0; it must be at least 1"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        match(_seen(torch.zeros(1, 1, 2)), _seen(torch.zeros(1, 1, 2)), **settings)


def test_features_of_two_models_are_refused() -> None:
    with pytest.raises(FovealError):
        match(_seen(_random(2, 2, 3)), _seen(_random(2, 2, 5)), keep_foreground=False)
    with pytest.raises(FovealError, match="patches have shapes"):
        match(_seen(_random(2, 2, 3)), _seen(_random(2, 2, 5)))
