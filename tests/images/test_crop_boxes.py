import pytest

from foveal.images.crops import NUM_CROP_DRAWS, random_box

_WHOLE = [1.0, 0.5] * 10  # all of the area, square


@pytest.mark.parametrize(
    ("draws", "box"),
    [
        ([0.5, 0.5] * 10 + [0.0, 0.0], (0, 0, 7, 7)),  # half of 100 pixels, square: sides of 7.07
        ([0.5, 0.5] * 10 + [0.99, 0.5], (3, 2, 7, 7)),
        ([0.5, 1.0] * 10 + [0.0, 0.0], (0, 0, 6, 8)),  # 4 : 3, sqrt(50 * 3 / 4) = 6.12
        ([*[1.0, 1.0] * 9, 0.04, 0.5, 0.5, 0.5], (4, 4, 2, 2)),  # nine are wider than the picture, the last is taken
    ],
)
def test_a_box_is_the_first_that_fits(draws: list[float], box: tuple[int, int, int, int]) -> None:
    assert len(draws) == NUM_CROP_DRAWS
    assert random_box(draws, 10, 10, scale=(0.0, 1.0)) == box


def test_a_strip_gives_its_centre() -> None:
    assert random_box([*_WHOLE, 0.0, 0.0], 400, 2, scale=(0.5, 1.0)) == (198, 0, 3, 2)
    assert random_box([*_WHOLE, 0.0, 0.0], 3, 900, scale=(0.5, 1.0)) == (0, 448, 3, 4)
