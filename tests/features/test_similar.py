import numpy as np
import pytest
import torch

from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.features.geometry import Geometry
from foveal.features.pictures import heat
from foveal.features.seen import SeenImage, see
from foveal.features.similar import similarity_maps, similarity_picture
from foveal.images.preprocess import Preprocess


def _seen(patches: torch.Tensor, *, scale: int = 1, name: str = "") -> SeenImage:
    height, width = (7 * side for side in patches.shape[:2])
    preprocess = Preprocess(mode="resize", patch_size=7, resize_size=min(height, width))
    geometry = Geometry.of(preprocess, scale * height, scale * width)
    return SeenImage(np.full((height, width, 3), 90, np.uint8), patches, geometry, name)


def test_values_are_cosines_with_the_patch_under_the_point() -> None:
    patches = torch.tensor([[[3.0, 0], [1, 1], [0, 2]], [[-1, 0], [0, 0], [4, 3]]])
    other = torch.tensor([[[0.0, 5]], [[6, 8]]])
    maps = similarity_maps(_seen(patches), [_seen(other, scale=3)], point=(6, 0))  # the first patch: 0..6
    half = 0.5**0.5
    np.testing.assert_allclose(maps[0].values, [[1, half, 0], [-1, 0, 0.8]], atol=1e-6)
    np.testing.assert_allclose(maps[1].values, [[0], [0.6]], atol=1e-6)
    assert maps[0].best == (3, 3)
    assert maps[1].best == (10, 31)  # patch centre 3, 10 of a picture shown at a third: 3 * 3.5 - .5, 3 * 10.5 - .5
    second = similarity_maps(_seen(patches), point=(7, 0))
    assert second[0].values[0, 1] == pytest.approx(1)


def test_a_patch_that_moved_is_found_where_it_went(patchwise_model: Model) -> None:
    scene = np.random.default_rng(0).integers(0, 256, (70, 70, 3), dtype=np.uint8)
    a, b = see(patchwise_model, scene[7:49, 14:63], size=42), see(patchwise_model, scene[:42, :49], size=42)
    found = similarity_maps(a, [b], point=(8, 3))[1]  # patch 0, 1 of A; in B one row lower, two columns further right
    assert found.values.max() == pytest.approx(1, abs=1e-6)
    assert found.best == (3 + 7 * 3, 3 + 7)


def test_points_outside_and_other_models_are_refused() -> None:
    seen = _seen(torch.ones(2, 3, 2))
    with pytest.raises(FovealError, match=r"21,3 is outside the picture of 21 x 14 pixels; choose X in 0\.\.20"):
        similarity_maps(seen, point=(21, 3))
    with pytest.raises(FovealError, match="width 3 and 2 cannot be compared"):
        similarity_maps(seen, [_seen(torch.ones(1, 1, 3))], point=(1, 1))
    with pytest.raises(FovealError, match="NaN or infinity"):
        similarity_maps(seen, [_seen(torch.full((1, 1, 2), float("nan")))], point=(1, 1))


def test_picture_has_one_scale_for_all_and_marks_the_points() -> None:
    a = _seen(torch.tensor([[[1.0, 0], [1, 0], [1, 0]]]), name="a")
    b = _seen(torch.tensor([[[0.0, 1], [0, 1], [0.6, 0.8]]]), name="b")
    maps = similarity_maps(a, [b], point=(3, 3))
    picture = similarity_picture([a, b], maps, point=(3, 3), cell_size=210)
    assert picture.size == (2 * 210 + 4, 2 * (16 + 70) + 4 + 4 + 26)
    pixels = np.asarray(picture).astype(int)
    top, low = pixels[16:86], pixels[16 + 70 + 4 + 16 :][:70]
    ends = heat(np.array([[0.0, 1.0]]), low=0, high=1)[0]
    expected = np.rint(0.6 * ends + 0.4 * 90).astype(int)
    np.testing.assert_allclose(low[5, 200], expected[1], atol=1)  # all of A is 1: the end of the scale
    np.testing.assert_allclose(low[5, 214 + 5], expected[0], atol=1)  # the start
    assert top[35, 35 + 4].min() > 240  # the ring of radius 5 around the point, at 34.5, 34.5
    assert top[35, 35].tolist() == [90, 90, 90]
    assert top[35, 214 + 175 + 4].min() > 240  # and around the best patch of B
    assert (top[35, 214 : 214 + 150] == 90).all()
    assert picture.tobytes() == similarity_picture([a, b], maps, point=(3, 3), cell_size=210).tobytes()


def test_constant_pictures_are_drawn() -> None:
    seen = _seen(torch.zeros(1, 1, 2))
    maps = similarity_maps(seen, point=(0, 0))
    assert maps[0].values.tolist() == [[0.0]]
    assert similarity_picture([seen], maps, point=(0, 0), cell_size=30).size[0] == 30
