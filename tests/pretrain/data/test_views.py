import doctest
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from foveal.errors import BadImageError
from foveal.pretrain.data import augment, views
from foveal.pretrain.data.views import ViewPlan, Views, ViewSettings, make_views, plan_views

NUM = 3000
PLAIN = dict.fromkeys(("jitter_probability", "grayscale_probability", "solarize_probability"), 0.0)
BICUBIC = Image.Resampling.BICUBIC
SMALL = {"global_size": 19, "local_size": 11, "num_local": 3}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return pytest.importorskip("skimage.data").astronaut()[60:435, 5:505]


def plans(index: int = 0, *, height: int = 375, width: int = 500, seed: int = 0, **options) -> list[ViewPlan]:
    return plan_views(height, width, settings=ViewSettings(**options), seed=seed, epoch=0, index=index)


def many_plans(view: int, **options) -> list[ViewPlan]:
    return [plans(index, **options)[view] for index in range(NUM)]


def largest_gap(a: np.ndarray, b: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance of two samples."""
    grid = np.concatenate([a, b])
    cdf_a, cdf_b = (np.searchsorted(np.sort(x), grid, side="right") / x.size for x in (a, b))
    return float(np.abs(cdf_a - cdf_b).max())


def distance(a: np.ndarray, b: np.ndarray | Image.Image) -> tuple[float, float]:
    difference = np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))
    return difference.mean(), difference.max()


def pillow_crop(image: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    top, left, h, w = box
    crop = Image.fromarray(image).crop((left, top, left + w, top + h))
    return np.asarray(crop.resize((size, h), BICUBIC).resize((size, size), BICUBIC))


KS_LIMIT = 2.2 * math.sqrt(2 / NUM)  # exceeded by chance once in 8,000 comparisons


def assert_rate(flags: list[bool], probability: float) -> None:
    assert abs(np.mean(flags) - probability) <= 4 * math.sqrt(probability * (1 - probability) / len(flags))


# ---- the crops: where, how large, resampled how -------------------------------------------------------------------


def reference_boxes(height: int, width: int, scale: tuple[float, float], num: int) -> np.ndarray:
    """Random resized crops, evaluated a second time: rejection over whole arrays."""
    rng = np.random.default_rng(99)
    area = height * width * rng.uniform(*scale, (num, 10))
    aspect = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), (num, 10)))
    w, h = np.rint(np.sqrt(area * aspect)).astype(int), np.rint(np.sqrt(area / aspect)).astype(int)
    fits = (w <= width) & (h <= height)
    first = fits.argmax(1)
    w, h = (x[np.arange(num), first][fits.any(1)] for x in (w, h))
    return np.column_stack([rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (97, 61)])
@pytest.mark.parametrize(("view", "scale"), [(0, (0.32, 1.0)), (1, (0.32, 1.0)), (2, (0.05, 0.32)), (9, (0.05, 0.32))])
def test_boxes_have_the_distribution_of_random_resized_crop(
    height: int, width: int, view: int, scale: tuple[float, float]
) -> None:
    ours = np.array([plan.box for plan in many_plans(view, height=height, width=width)])
    theirs = reference_boxes(height, width, scale, NUM)

    def statistics(boxes: np.ndarray) -> list[np.ndarray]:
        top, left, h, w = boxes.T
        return [h * w / (height * width), w / h, (top + h / 2) / height, (left + w / 2) / width]

    for a, b in zip(statistics(ours), statistics(theirs), strict=True):
        assert largest_gap(a, b) < KS_LIMIT
    assert np.all(ours[:, :2] >= 0)
    assert np.all(ours[:, :2] + ours[:, 2:] <= (height, width))


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (400, 2, (198, 0, 3, 2)),  # ratio below 3/4: full width, centred
        (3, 900, (0, 448, 3, 4)),  # ratio above 4/3: full height, centred
        (1, 1, (0, 0, 1, 1)),
        (500, 1, (249, 0, 1, 1)),
    ],
)
def test_images_too_narrow_for_any_box_give_their_centre(
    height: int, width: int, box: tuple[int, int, int, int]
) -> None:
    assert Counter(plan.box for plan in many_plans(0, height=height, width=width)).most_common(1)[0][0] == box


@pytest.mark.parametrize(("size", "box"), [
    (224, (30, 20, 300, 350)),
    (224, (0, 0, 375, 500)),
    (224, (100, 60, 97, 83)),
    (98, (31, 200, 170, 181)),
    (98, (200, 33, 61, 71)),
    (32, (5, 5, 32, 32)),
    (17, (7, 9, 300, 290)),
    (16, (7, 9, 1, 23)),
    (16, (7, 9, 23, 1)),
])  # fmt: skip
def test_resize_is_that_of_pillow(photo: np.ndarray, size: int, box: tuple[int, int, int, int]) -> None:
    """At most 2 grey levels and 0.01 in the mean from crop, then rows, then columns: both round twice, in fixed point.

    Recent Pillow takes the columns first where that is less work, and clips the overshoot of strong edges in
    between: 0.3 in the mean. `resize(box=...)` also reads pixels outside the box, so the border differs by as much
    as the picture does there; inside, beyond the kernel's 2 pixels of the coarser grid, 0.3 in the mean again.
    """
    top, left, h, w = box
    corners = (left, top, left + w, top + h)
    ours = views._resized_crop(photo, box, size=size)

    mean, worst = distance(ours, pillow_crop(photo, box, size))
    assert mean < 0.01
    assert worst <= 2
    image = Image.fromarray(photo)
    assert distance(ours, image.crop(corners).resize((size, size), BICUBIC))[0] < 0.3
    border = 1 + math.ceil(2 * max(1, size / min(h, w)))
    inside = np.s_[border:-border, border:-border]
    whole = np.asarray(image.resize((size, size), BICUBIC, box=corners))
    if 2 * border < size:
        assert distance(ours[inside], whole[inside])[0] < 0.3


def test_views_carry_out_their_plans(photo: np.ndarray) -> None:
    """Without colour operations a view is Pillow's crop, resized and mirrored as the plan says, within 2 levels."""
    settings = ViewSettings(**PLAIN, **SMALL, blur_sigma=(1e-3, 1e-3))
    flips = set()
    for index in range(6):
        result = make_views(photo, settings=settings, seed=1, epoch=2, index=index)
        planned = plan_views(*photo.shape[:2], settings=settings, seed=1, epoch=2, index=index)
        for plan, crop in zip(planned, itertools.chain(*result[:3]), strict=True):
            expected = pillow_crop(photo, plan.box, crop.shape[0])
            assert distance(crop, expected[:, ::-1] if plan.hflip else expected)[1] <= 2
            flips.add(plan.hflip)
    assert flips == {True, False}


def test_operations_run_in_their_order(photo: np.ndarray) -> None:
    plan = ViewPlan((3, 5, 40, 50), True, ((3, 0.05), (0, 1.3), (2, 0.9), (1, 0.7)), True, 1.1, True)
    crop = augment.hflip(views._resized_crop(photo, plan.box, size=23))
    crop = augment.adjust_brightness(augment.adjust_hue(crop, 0.05), 1.3)
    crop = augment.to_grayscale(augment.adjust_contrast(augment.adjust_saturation(crop, 0.9), 0.7))
    crop = augment.solarize(augment.gaussian_blur(crop, sigma=1.1, kernel_size=9), 128)
    assert np.array_equal(views._render(photo, plan, size=23, settings=ViewSettings()), crop)


# ---- chance: rates, ranges, orders --------------------------------------------------------------------------------


@pytest.mark.parametrize(("blur", "rates"), [("as_trained", (0.0, 0.9, 0.5)), ("as_intended", (1.0, 0.1, 0.5))])
def test_rates_of_the_operations_in_each_view(blur: str, rates: tuple[float, float, float]) -> None:
    for view, blur_rate, solarize_rate in ((0, rates[0], 0.0), (1, rates[1], 0.2), (2, rates[2], 0.0)):
        chosen = many_plans(view, blur=blur)
        assert_rate([p.hflip for p in chosen], 0.5)
        assert_rate([bool(p.jitter) for p in chosen], 0.8)
        assert_rate([p.grayscale for p in chosen], 0.2)
        assert_rate([p.blur_sigma is not None for p in chosen], blur_rate)
        assert_rate([p.solarize for p in chosen], solarize_rate)


def test_factors_are_uniform_and_orders_equally_likely() -> None:
    chosen = many_plans(4, jitter_probability=1.0)
    uniform = np.random.default_rng(0).uniform(-1, 1, NUM)
    for operation, (centre, strength) in enumerate(((1, 0.4), (1, 0.4), (1, 0.2), (0, 0.1))):
        factors = np.array([dict(p.jitter)[operation] for p in chosen])
        assert largest_gap((factors - centre) / strength, uniform) < KS_LIMIT
    orders = Counter(tuple(operation for operation, _ in p.jitter) for p in chosen)
    assert len(orders) == 24
    assert sum((n - NUM / 24) ** 2 / (NUM / 24) for n in orders.values()) < 23 + 5 * math.sqrt(2 * 23)
    sigmas = np.array([p.blur_sigma for p in chosen if p.blur_sigma is not None])
    assert largest_gap((sigmas - 0.1) / 0.95 - 1, uniform) < KS_LIMIT * 1.25


def test_choices_do_not_hang_together() -> None:
    """Correlations over the images, between operations of a view and between views: within 4.5 standard errors."""
    rows = [
        [value for p in plans(i)[:3] for value in (*p.box, p.hflip, bool(p.jitter), p.grayscale)] for i in range(NUM)
    ]
    correlation = np.corrcoef(np.array(rows, dtype=float).T)
    boxes = np.kron(np.eye(3, dtype=bool), np.pad(np.ones((4, 4), dtype=bool), (0, 3)))  # position and size do
    assert np.abs(correlation[~boxes & ~np.eye(21, dtype=bool)]).max() < 4.5 / math.sqrt(NUM)


def test_switching_an_operation_off_moves_no_other_choice() -> None:
    full = plans(5, jitter_probability=1.0)
    off = plans(5, jitter_probability=1.0, hue=0.0, hflip_probability=0.0, grayscale_probability=0.0)
    for a, b in zip(full, off, strict=True):
        assert (a.box, a.blur_sigma, a.solarize) == (b.box, b.blur_sigma, b.solarize)
        assert tuple(pair for pair in a.jitter if pair[0] != 3) == b.jitter
    assert any(p.hflip for p in full)
    assert not any(p.hflip or p.grayscale for p in off)


# ---- purity -------------------------------------------------------------------------------------------------------


def as_bytes(result: Views) -> bytes:
    return result.global_crops.tobytes() + result.local_crops.tobytes()


def test_views_are_a_pure_function_of_seed_epoch_and_index(photo: np.ndarray) -> None:
    settings = ViewSettings(**SMALL)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**63 + 5, 0, 0), (2**63 + 6, 0, 0), (-1, 0, 0)]
    before = photo.copy()
    results = [as_bytes(make_views(photo, settings=settings, seed=s, epoch=e, index=i)) for s, e, i in keys]
    again = [as_bytes(make_views(photo, settings=settings, seed=s, epoch=e, index=i)) for s, e, i in keys]
    assert results == again
    assert len(set(results)) == len(keys)
    assert np.array_equal(photo, before)


def test_views_do_not_depend_on_how_many_there_are(photo: np.ndarray) -> None:
    def run(num_local: int) -> Views:
        settings = ViewSettings(**{**SMALL, "num_local": num_local})
        return make_views(photo, settings=settings, seed=3, epoch=0, index=8)

    few, many = run(2), run(7)
    assert np.array_equal(few.global_crops, many.global_crops)
    assert np.array_equal(few.local_crops, many.local_crops[:2])
    assert run(0).local_crops.shape == (0, 11, 11, 3)
    assert len({crop.tobytes() for crop in many.local_crops}) == 7


# ---- borders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 57), (57, 1), (2, 3), (13, 7), (31, 400)])
def test_any_size_of_image_gives_full_crops(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for index in range(20):
        result = make_views(image, settings=ViewSettings(**SMALL), seed=0, epoch=0, index=index)
        assert result.global_crops.shape == (2, 19, 19, 3)
        assert result.local_crops.shape == (3, 11, 11, 3)
        assert result.global_crops.dtype == result.local_crops.dtype == np.uint8


def test_read_only_and_mirrored_memory_is_accepted(photo: np.ndarray) -> None:
    settings = ViewSettings(**SMALL)
    read_only = photo.copy()
    read_only.flags.writeable = False
    mirrored = photo[:, ::-1].copy()[:, ::-1]
    expected = as_bytes(make_views(photo, settings=settings, seed=0, epoch=0, index=0))
    for image in (read_only, mirrored):
        assert as_bytes(make_views(image, settings=settings, seed=0, epoch=0, index=0)) == expected


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((5, 7), "u1"), ((0, 7, 3), "u1"), ((5, 7, 0), "u1"), ((5, 7, 3), "f8"), ((5, 7, 3), "u2"), ((5, 7, 4), "i2")],
)
def test_other_arrays_are_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(BadImageError, match="decode it as such") as caught:
        make_views(np.zeros(shape, dtype), settings=ViewSettings(), seed=0, epoch=0, index=0)
    assert caught.value.reason == "not_an_image"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blur_kernel_size": 4}, "use 3 or 5"),
        ({"local_scale": (0.3, 0.1)}, "local_scale=.* is not a range"),
        ({"global_scale": (0.3, 1.1)}, "use at most 1"),
        ({"hflip_probability": 1.5}, "less than or equal to 1"),
        ({"gaussian": 1}, "Extra inputs"),
    ],
)
def test_settings_refuse_what_has_no_meaning(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ViewSettings(**options)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ViewSettings().num_local = 3


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(views) == (0, 2)
