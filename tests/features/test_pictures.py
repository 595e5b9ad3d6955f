import numpy as np
import pytest
from PIL import Image

from foveal.errors import FovealError
from foveal.features.pictures import FRAME, RED, displayed, picture_grid, shortened


def _plain(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_grid_scales_each_picture_into_its_cell_and_keeps_proportions() -> None:
    grid = picture_grid([[_plain(20, 40, 10), _plain(40, 10, 90)], [Image.new("L", (7, 7), 200)]], cell_size=60)
    # columns 60 (the square below) and 15 wide; rows 60 (the tall one) and 60 high; gaps of 4
    assert grid.size == (60 + 4 + 15, 60 + 4 + 60)
    pixels = np.asarray(grid)
    assert (pixels[:30, :60] == 10).all()
    assert (pixels[30:60, :60] == 255).all()
    assert (pixels[:60, 64:] == 90).all()
    assert (pixels[64:, :60] == 200).all()
    assert (pixels[60:64] == 255).all()
    assert (pixels[64:, 60:] == 255).all()


def test_labels_take_a_strip_only_in_rows_that_have_them() -> None:
    rows = [[_plain(8, 8, 0), None], [_plain(8, 8, 0), _plain(8, 8, 0)]]
    assert picture_grid(rows, cell_size=40).size == (84, 84)
    labelled = picture_grid(rows, labels=[["", ""], ["", "fig"]], cell_size=40)
    assert labelled.size == (84, 84 + 16)
    strip = np.asarray(labelled)[44:60]
    assert (strip[:, :44] == 255).all()
    assert (strip[:, 44:] < 100).any()


def test_frames_surround_their_picture() -> None:
    grid = picture_grid([[_plain(10, 20, 90), _plain(10, 20, 90)]], frames=[[RED, None]], cell_size=20)
    assert grid.size == (2 * 26 + 4, 16)
    assert grid.getpixel((0, 0)) == grid.getpixel((25, 15)) == RED
    assert grid.getpixel((FRAME, FRAME)) == (90, 90, 90)
    assert grid.getpixel((30, 0)) == (255, 255, 255)


def test_long_labels_are_shortened_to_their_column() -> None:
    assert shortened("cat", 100) == "cat"
    assert shortened("a very long file name.jpg", 60).endswith("…")
    assert len(shortened("a very long file name.jpg", 60)) > 4
    assert shortened("wide", 2) == ""
    rows, wide = [[_plain(9, 9, 0), _plain(9, 9, 0)]], "W" * 99
    first = np.asarray(picture_grid(rows, labels=[[wide, ""]], cell_size=50))
    assert (first[:16, 51:] == 255).all()  # nothing runs into the next column


def test_same_input_gives_the_same_pixels() -> None:
    rows = [[np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)]]
    first, second = (picture_grid(rows, labels=[["köln 北"]], cell_size=64) for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("rows", "extra", "message"),
    [
        ([], {}, "a grid without a picture"),
        ([[None]], {}, "a grid without a picture"),
        ([[_plain(1, 1, 0)]], {"cell_size": 0}, "cell_size=0; it must be at least 1"),
        ([[_plain(1, 1, 0)]], {"labels": [["a", "b"]]}, r"labels are \[2\] a row, the pictures \[1\]"),
        ([[_plain(1, 1, 0)]], {"frames": []}, r"frames are \[\] a row"),
    ],
)
def test_grids_that_cannot_be_drawn_are_explained(rows: list, extra: dict, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        picture_grid(rows, **extra)


def test_pictures_of_any_channels_are_displayed() -> None:
    wide = np.array([[[65535, 257, 0, 9]]], np.uint16)
    assert displayed(wide).tolist() == [[[255, 1, 0]]]
    assert displayed(wide[:, :, :1]).tolist() == [[[255] * 3]]
    assert displayed(np.array([[[5, 7]]], np.uint8)).tolist() == [[[5, 7, 0]]]
