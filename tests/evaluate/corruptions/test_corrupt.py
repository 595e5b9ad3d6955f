import colorsys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from foveal.errors import FovealError
from foveal.evaluate.corruptions import blur, digital, noise, weather
from foveal.evaluate.corruptions.corrupt import CORRUPTIONS, SEVERITIES, corrupt, generator_of


def _generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _picture(height: int = 61, width: int = 47) -> np.ndarray:
    """A smooth picture (height, width, 3) float32 in 0.2..0.8."""
    rows, columns = np.mgrid[:height, :width]
    planes = [np.sin(rows / 7 + shift) * np.cos(columns / 5) for shift in (0, 1, 2)]
    return (0.5 + 0.3 * np.stack(planes, axis=2)).astype(np.float32)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_same_seed_same_picture_and_another_uri_another_one(name: str) -> None:
    pixels = digital.to_bytes(_picture(64, 64))
    one, again, other = (corrupt(pixels, name, 3, generator_of(uri, name, 3, seed=0)) for uri in ("a", "a", "b"))
    assert one.dtype == np.uint8
    assert one.shape == pixels.shape
    np.testing.assert_array_equal(one, again)
    drawn = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert (one != other).any() == drawn
    assert (one != pixels).any()


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"snow", "frost", "fog", "elastic_transform", "glass_blur"}))
def test_severity_grows(name: str) -> None:
    pixels = digital.to_bytes(_picture(96, 96) + 0.2 * _generator().normal(size=(96, 96, 3)))
    changes = [
        np.abs(corrupt(pixels, name, severity, _generator(7)).astype(float) - pixels).mean() for severity in SEVERITIES
    ]
    assert changes == sorted(changes)


def test_noise_has_the_moments_that_it_is_named_for() -> None:
    grey = np.full((200, 200, 3), 0.4, np.float32)
    normal = noise.gaussian_noise(grey, 0.1, _generator())
    assert normal.mean() == pytest.approx(0.4, abs=0.002)
    assert normal.std() == pytest.approx(0.1, rel=0.02)
    counts = noise.shot_noise(grey, 12, _generator())
    assert counts.mean() == pytest.approx(0.4, abs=0.005)
    assert counts.std() == pytest.approx(np.sqrt(0.4 / 12), rel=0.02)  # Poisson: variance = mean
    impulses = noise.impulse_noise(grey, 0.3, _generator())
    assert (impulses == 0).mean() == pytest.approx(0.15, abs=0.01)
    assert (impulses == 1).mean() == pytest.approx(0.15, abs=0.01)
    assert (impulses == np.float32(0.4)).mean() == pytest.approx(0.7, abs=0.01)


def test_disk_of_a_defocused_point_has_its_radius() -> None:
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    seen = blur.defocus_blur(point, (3, 0.1), _generator())[:, :, 0] > 1e-4
    rows, columns = np.nonzero(seen)
    assert seen.sum() == 29  # whole pixels within 3 of the centre
    assert ((rows - 20) ** 2 + (columns - 20) ** 2).max() == 9


def test_gaussian_blur_is_scipys() -> None:
    picture = _picture()
    expected = ndimage.gaussian_filter(picture, (1.1, 1.1, 0), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(blur.gaussian_blur(picture, 1.1), expected, atol=1e-5)


def test_glass_takes_colours_from_near_by() -> None:
    columns = np.tile(np.linspace(0, 1, 60, dtype=np.float32)[None, :, None], (50, 1, 3))
    seen = blur.glass_blur(columns, (0.01, 2, 1), _generator())  # so little blur is none
    moved = np.abs(seen - columns)[:, :, 0] * 59
    assert moved.max() > 1
    assert np.isin(seen, columns).all()
    assert moved[:3].max() < 0.01  # the edge stays
    assert moved[25].mean() > 0.5


def test_a_point_is_smeared_along_the_angle() -> None:
    point = np.zeros((61, 61), np.float32)
    point[30, 30] = 1
    seen = blur.smear(point, 5, 3.0, angle=0)
    weights = np.exp(-(np.arange(11) ** 2) / 18)
    np.testing.assert_allclose(seen[30, 30:19:-1], weights / weights.sum(), atol=1e-6)
    assert seen.sum() == pytest.approx(1, abs=1e-5)
    rows, columns = np.nonzero(blur.smear(point, 5, 3.0, angle=45) > 1e-6)
    assert (rows == columns).all()
    assert rows.min() == 30 - 7  # 10 / sqrt(2)


def test_zoom_enlarges_about_the_centre() -> None:
    rows, columns = np.mgrid[:41, :41]
    disk = ((rows - 20) ** 2 + (columns - 20) ** 2 <= 6**2).astype(np.float32)
    larger = blur.zoomed(disk, 2.0)
    assert larger.sum() == pytest.approx(4 * disk.sum(), rel=0.05)
    np.testing.assert_allclose(larger, larger[::-1, ::-1], atol=1e-5)
    three = np.repeat(disk[:, :, None], 3, axis=2)
    np.testing.assert_allclose(blur.zoom_blur(three, (2.0,), _generator())[:, :, 0], (disk + larger) / 2, atol=1e-6)


def test_plasma_fills_the_range_and_is_rougher_where_noise_decays_less() -> None:
    smooth, rough = (weather.plasma((60, 50), decay, _generator()) for decay in (3.0, 1.2))
    for one in (smooth, rough):
        assert one.shape == (60, 50)
        assert one.min() >= 0
        assert one.max() <= 1
    assert np.abs(np.diff(rough, axis=0)).mean() > 3 * np.abs(np.diff(smooth, axis=0)).mean()


def test_fog_keeps_the_brightest_value_and_pulls_everything_together() -> None:
    picture = _picture()
    seen = weather.fog(picture, (2.0, 2.0), _generator())
    assert seen.max() <= picture.max() + 1e-6
    assert np.ptp(seen[30, 20] - seen[31, 21]) < np.ptp(picture[30, 20] - picture[31, 21])


def test_snow_and_frost_brighten() -> None:
    dark = np.full((64, 64, 3), 0.1, np.float32)
    for severity in range(5):
        snowy = weather.snow(dark, CORRUPTIONS["snow"].settings[severity], _generator())
        kept = CORRUPTIONS["snow"].settings[severity][-1]
        assert snowy.min() >= kept * 0.1 + (1 - kept) * 0.65 - 1e-5  # 1.5 grey + 0.5, where no flake falls
        assert snowy.max() > snowy.min() + 0.05
    kept, added = CORRUPTIONS["frost"].settings[0]
    frosted = weather.frost(dark, (kept, added), _generator())
    assert frosted.min() >= kept * 0.1 - 1e-6
    assert 0.2 < frosted.max() <= kept * 0.1 + added + 1e-6


def test_brightness_adds_to_the_value_alone() -> None:
    picture = _picture(3, 4)
    seen = weather.brightness(picture, 0.1, _generator())
    for one, before in zip(seen.reshape(-1, 3), picture.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
        np.testing.assert_allclose(one, colorsys.hsv_to_rgb(hue, saturation, min(value + 0.1, 1)), atol=1e-4)


def test_contrast_keeps_a_share_of_the_distance_from_the_mean() -> None:
    picture = np.array([[[0.0, 0.2, 1.0], [1.0, 0.4, 1.0]]], np.float32)
    expected = [[[0.3, 0.26, 1.0], [0.7, 0.34, 1.0]]]
    np.testing.assert_allclose(digital.contrast(picture, 0.4, _generator()), expected, atol=1e-6)


def test_pixels_become_blocks_of_their_mean() -> None:
    picture = _picture(64, 48)
    seen = digital.pixelate(picture, 0.25, _generator())
    means = picture.reshape(16, 4, 12, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(seen, means.repeat(4, axis=0).repeat(4, axis=1), atol=1.5 / 255)


def test_jpeg_is_what_pillow_writes_and_reads(tmp_path_factory: pytest.TempPathFactory) -> None:
    picture = _picture(32, 32)
    path = tmp_path_factory.mktemp("jpeg") / "one.jpg"
    Image.fromarray(digital.to_bytes(picture)).save(path, quality=10)
    expected = np.asarray(Image.open(path)).astype(int)
    seen = np.rint(digital.jpeg_compression(picture, 10, _generator()) * 255)
    assert np.abs(seen - expected).max() <= 3  # decoders differ in rounding


def test_elastic_field_moves_pixels_as_scipy_does() -> None:
    picture = _picture(50, 40)
    seen = digital.elastic_transform(picture, (12.2, 2.44, 0.0), _generator(3))
    generator = _generator(3)
    generator.uniform(0, 0, (3, 2))
    fields = generator.uniform(-1, 1, (2, 50, 40)).astype(np.float32)
    right, down = (12.2 * ndimage.gaussian_filter(one, 2.44, mode="reflect", truncate=3) for one in fields)
    rows, columns = np.mgrid[:50, :40]
    for channel in range(3):
        expected = ndimage.map_coordinates(
            picture[:, :, channel], [rows + down, columns + right], order=1, mode="reflect"
        )
        np.testing.assert_allclose(seen[:, :, channel], expected, atol=0.01)  # OpenCV rounds to 1/32 pixel


def test_unknown_corruptions_and_severities_are_named() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(FovealError, match=r"no corruption is called 'fogg'.*jpeg_compression; did you mean 'fog'"):
        corrupt(pixels, "fogg", 1, _generator())
    with pytest.raises(FovealError, match="severity 6; choose 1 to 5"):
        corrupt(pixels, "fog", 6, _generator())
