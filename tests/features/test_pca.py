import numpy as np
import pytest
import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.features.geometry import Geometry
from foveal.features.pca import fit_pca, foreground, patch_colours, pca_picture
from foveal.features.seen import SeenImage, see
from foveal.images.preprocess import Preprocess


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_rows", [4, 7, 100])
def test_components_are_those_of_a_singular_value_decomposition(num_rows: int) -> None:
    rows = _random(num_rows, 5) * torch.tensor([3.0, 1.0, 2.0, 0.5, 0.1]) + 10
    pca = fit_pca(rows)
    centred = rows.double().numpy() - rows.double().numpy().mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(pca.variances.numpy(), (singular**2 / num_rows)[:3], rtol=1e-9)
    overlap = np.abs((pca.components.numpy() * directions[:3]).sum(axis=1))
    np.testing.assert_allclose(overlap, 1, atol=1e-9)
    np.testing.assert_allclose(pca.project(rows).mean(dim=0).numpy(), 0, atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_signs_do_not_depend_on_the_order_or_the_sign_of_the_rows(seed: int) -> None:
    rows = _random(31, 5, seed=seed)
    first, shuffled = fit_pca(rows), fit_pca(rows.flip(0))
    torch.testing.assert_close(first.components, shuffled.components, atol=1e-9, rtol=0)
    mirrored = fit_pca(-rows)  # the covariance is the same, and so must be the components
    torch.testing.assert_close(first.components, mirrored.components, atol=1e-9, rtol=0)
    largest = first.components.gather(1, first.components.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.parametrize(("num_rows", "width"), [(1, 5), (2, 5), (3, 5), (9, 2), (9, 1)])
def test_missing_dimensions_are_zero_components(num_rows: int, width: int) -> None:
    pca = fit_pca(_random(num_rows, width))
    rank = min(num_rows - 1, width, 3)
    assert pca.components.shape == (3, width)
    assert (pca.variances > 0).tolist() == [i < rank for i in range(3)]
    assert pca.components.norm(dim=1).tolist() == pytest.approx([float(i < rank) for i in range(3)])


def test_impossible_rows_are_errors() -> None:
    with pytest.raises(FovealError, match="give at least one row"):
        fit_pca(torch.zeros(0, 5))
    with pytest.raises(FovealError, match="NaN or infinity"):
        fit_pca(torch.tensor([[float("nan"), 1.0]]))


def _scene(sign: float) -> tuple[Tensor, Tensor]:
    """Two images of 6 x 7 patches with an object in the middle that differs along one direction."""
    inside = torch.zeros(2, 6, 7, dtype=torch.bool)
    inside[0, 1:5, 2:6] = True
    inside[1, 2:5, 1:5] = True
    direction = _random(5, seed=1)
    patches = 0.05 * _random(2, 6, 7, 5, seed=2) + sign * torch.where(inside[..., None], direction, -direction)
    return patches, inside


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_foreground_is_the_object_in_the_middle_whatever_its_sign(sign: float) -> None:
    patches, inside = _scene(sign)
    assert torch.equal(torch.stack(foreground(patches)), inside)


def test_background_is_black_and_can_be_kept() -> None:
    patches, inside = _scene(1.0)
    colours = np.stack(patch_colours(patches))
    assert colours.shape == (2, 6, 7, 3)
    assert colours.dtype == np.uint8
    assert not colours[~inside].any()
    assert colours[inside].any(axis=0).all()
    assert np.stack(patch_colours(patches, keep_foreground=False))[~inside].any()


def test_colours_are_the_scaled_components_by_hand() -> None:
    values = torch.tensor([[-2.0, -1.0, 0.0], [2.0, 1.0, 0.0], [2.0, -1.0, 0.0], [-2.0, 1.0, 0.0]])
    patches = values.view(1, 2, 2, 3)
    colours = patch_colours(patches, keep_foreground=False, percentiles=(0, 100))[0].reshape(4, 3).tolist()
    # first component along x, second along y, the third has no variance and is middle grey
    assert colours == [[0, 0, 128], [255, 255, 128], [255, 0, 128], [0, 255, 128]]


def test_percentiles_keep_one_odd_patch_from_dimming_the_rest() -> None:
    patches = _random(1, 20, 20, 3)
    patches[0, 0, 0] = 1000
    full = patch_colours(patches, keep_foreground=False, percentiles=(0, 100))[0][..., 0]
    robust = patch_colours(patches, keep_foreground=False)[0][..., 0]
    assert full.ravel()[1:].std() < 5 < robust.ravel()[1:].std()


@pytest.mark.parametrize("keep_foreground", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1, 5), (1, 1, 2, 5), (2, 1, 1, 1), (1, 2, 3, 2), (3, 4, 4, 48)])
def test_tiny_and_constant_inputs_do_not_crash(shape: tuple[int, ...], keep_foreground: bool) -> None:
    for patches in (torch.zeros(shape), torch.full(shape, 0.1), _random(*shape)):
        assert np.stack(patch_colours(patches, keep_foreground=keep_foreground)).shape == (*shape[:3], 3)
    grey = np.stack(patch_colours(torch.full(shape, 0.1), keep_foreground=keep_foreground))
    assert (grey == 128).all()


@pytest.mark.parametrize(
    ("patches", "percentiles", "message"),
    [
        (torch.zeros(2, 3, 5), (1, 99), r"patches have shapes \[\(3, 5\), \(3, 5\)\]"),
        (torch.zeros(0, 3, 3, 5), (1, 99), r"patches have shapes \[\]; expected"),
        (torch.zeros(1, 3, 3, 5), (99, 1), "percentiles="),
        (torch.full((1, 3, 3, 5), float("inf")), (1, 99), "NaN or infinity"),
    ],
)
def test_inputs_that_make_no_picture_are_explained(patches: Tensor, percentiles: tuple, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        patch_colours(patches, percentiles=percentiles)


def test_images_of_different_grids_are_coloured_jointly() -> None:
    """A picture cut in two at any place has the colours of the whole: nothing depends on where an image ends."""
    patches, _ = _scene(1.0)
    whole = np.stack(patch_colours(patches, keep_foreground=False))
    parts = [patches[0, :, :3], patches[0, :, 3:], patches[1]]
    colours = patch_colours(parts, keep_foreground=False)
    assert [part.shape for part in colours] == [(6, 3, 3), (6, 4, 3), (6, 7, 3)]
    np.testing.assert_array_equal(np.concatenate(colours[:2], axis=1), whole[0])
    np.testing.assert_array_equal(colours[2], whole[1])


def test_foreground_of_different_grids_is_one_side_for_all() -> None:
    patches, inside = _scene(1.0)
    wide = torch.cat([patches[0], patches[0, :, -1:].expand(-1, 4, -1)], dim=1)  # more background on the right
    found = foreground([wide, patches[1]])
    assert torch.equal(found[0][:, :7], inside[0])
    assert not found[0][:, 7:].any()
    assert torch.equal(found[1], inside[1])


def test_rows_in_blocks_give_the_same_components_far_from_the_origin() -> None:
    """Blocks around other means and of any number are merged exactly; a sum of squares would lose the digits."""
    rows = _random(20_001, 5).double() * torch.tensor([3.0, 1.0, 2.0, 0.5, 0.1]) + 1e3
    rows[:7000] += 50.0
    once = fit_pca(rows, num_components=5)
    parts = fit_pca(iter([rows[:3], rows[3:7000], rows[7000:7000], rows[7000:]]), num_components=5)
    torch.testing.assert_close(parts.variances, once.variances, rtol=1e-9, atol=0)
    torch.testing.assert_close(parts.components, once.components, rtol=0, atol=1e-9)
    centred = (rows - rows.mean(dim=0)).numpy()
    np.testing.assert_allclose(once.variances, np.linalg.svd(centred, compute_uv=False) ** 2 / len(rows), rtol=1e-9)
    values = once.project(rows[:9000].view(2, 4500, 5))
    torch.testing.assert_close(values, (rows[:9000].view(2, 4500, 5) - once.mean) @ once.components.T)


def test_picture_shows_originals_above_components(model: Model, pictures: list[np.ndarray]) -> None:
    flat = [np.full((40, 40, 3), value, dtype=np.uint8) for value in (10, 200)]
    seen = [see(model, picture, size=56, fit="crop") for picture in (*flat, pictures[0])]
    grid = pca_picture(seen, cell_size=60)
    assert grid.size == (188, 124)
    top = np.asarray(grid)[:60]
    assert np.abs(top[:, :60].astype(int) - 10).max() <= 1
    assert np.abs(top[:, 64:124].astype(int) - 200).max() <= 1
    assert grid.tobytes() == pca_picture(seen, cell_size=60).tobytes()


def test_picture_of_images_of_different_shapes(model: Model, pictures: list[np.ndarray]) -> None:
    seen = [see(model, picture, name="a name") for picture in pictures]
    grid = pca_picture(seen, cell_size=56)
    assert grid.size == (56 + 45 + 56 + 56 + 56 + 4 * 4, 16 + 2 * 56 + 4)  # 40 x 29 is seen as 35 x 28: drawn 56 x 45
    with pytest.raises(FovealError, match="cell_size=0"):
        pca_picture(seen, cell_size=0)
    with pytest.raises(FovealError, match="at least one image"):
        pca_picture([])


def test_a_picture_without_foreground_is_shown_whole_and_named(caplog: pytest.LogCaptureFixture) -> None:
    one = torch.zeros(4, 4, 3)
    one[1:3, 1:3] = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0)) + 5
    other = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(1)) / 9
    masks = foreground([one, other])
    assert masks[0].any()
    assert not masks[1].any()
    colours = patch_colours([one, other])
    assert (colours[0] == 0).all(axis=2).sum() == 12  # the background of a picture that has a foreground
    np.testing.assert_array_equal(colours[1], patch_colours([other], keep_foreground=False)[0])
    assert len(np.unique(colours[1].reshape(-1, 3), axis=0)) > 1
    geometry = Geometry.of(Preprocess(mode="resize", patch_size=7), 28, 28)
    pixels = np.zeros((28, 28, 3), dtype=np.uint8)
    seen = [SeenImage(pixels, patches, geometry, name) for name, patches in (("one", one), ("other", other))]
    pca_picture(seen)
    assert "no foreground beside the other pictures in other; shown whole" in caplog.text
    caplog.clear()
    pca_picture(seen, keep_foreground=False)
    assert caplog.text == ""
