import numpy as np
import pytest
from hand_made import iou, picture, things

from foveal.annotate.cells import Cells, Sharpness
from foveal.annotate.prompts import PromptSession, PromptSettings
from foveal.annotate.types import Prompt
from foveal.errors import FovealError

LEFT, RIGHT = (10, 9, 30, 31), (21, 45, 39, 62)
HEIGHT, WIDTH = 48, 72


def _point(x: float, y: float, positive: bool = True) -> Prompt:
    return Prompt("point", ((x, y),), positive)


@pytest.fixture(scope="module")
def two() -> np.ndarray:
    return things(HEIGHT, WIDTH, [LEFT, RIGHT])


def test_one_click_finds_the_thing_to_its_edges(two: np.ndarray) -> None:
    found = PromptSession(picture(two)).mask([_point(20, 20)])
    assert found.dtype == np.float32
    assert found.shape == (HEIGHT, WIDTH)
    assert iou(found > 0.5, things(HEIGHT, WIDTH, [LEFT])) > 0.95


def test_all_that_is_alike_is_found_where_the_whole_is_meant(two: np.ndarray) -> None:
    session = PromptSession(picture(two), PromptSettings(whole=True))
    assert iou(session.mask([_point(20, 20)]) > 0.5, two) > 0.95


def test_a_click_on_each_thing_joins_both(two: np.ndarray) -> None:
    assert iou(PromptSession(picture(two)).mask([_point(20, 20), _point(55, 30)]) > 0.5, two) > 0.95


def test_a_negative_stroke_takes_a_part_away_and_a_later_click_wins(two: np.ndarray) -> None:
    session = PromptSession(picture(two))
    stroke = Prompt("stroke", ((10.0, 25.0), (30.0, 25.0)), positive=False, radius=3)
    without = session.mask([_point(20, 14), stroke]) > 0.5
    assert not without[22:29, 10:31].any()
    assert without[14, 20]
    again = session.mask([_point(20, 14), stroke, _point(20, 25)]) > 0.5
    assert again[25, 20]


def test_a_box_alone_finds_what_is_unlike_its_outside() -> None:
    truth = things(HEIGHT, WIDTH, [LEFT])
    found = PromptSession(picture(truth)).mask([Prompt("box", ((6, 4), (36, 35)))])
    assert iou(found > 0.5, truth) > 0.95
    assert not found[:, 40:].any()


def test_a_negative_box_holds_nothing(two: np.ndarray) -> None:
    found = PromptSession(picture(two)).mask([_point(14, 14), Prompt("box", ((0, 20), (35, 47)), positive=False)])
    assert not found[20:, :36].any()
    assert found[14, 14] == 1


def test_masks_lie_on_the_original_of_a_cropped_picture(two: np.ndarray) -> None:
    """The centre square of 48 pixels is seen: x from 12 to 60."""
    found = PromptSession(picture(two, mode="crop"), PromptSettings(whole=True)).mask([_point(20, 20)])
    assert iou(found[:, 12:60] > 0.5, two[:, 12:60]) > 0.95
    assert not found[:, :12].any()
    assert not found[:, 60:].any()


def test_padding_is_no_part_of_a_mask() -> None:
    truth = things(46, 70, [LEFT])
    found = PromptSession(picture(truth, mode="pad")).mask([_point(20, 20)])
    assert iou(found > 0.5, truth) > 0.95


def test_settled_beliefs_solve_the_walk() -> None:
    cells = Cells(picture(things(8, 12, [(0, 0, 8, 5)])), Sharpness(trust=0.1))
    height, width = cells.shape
    belief = np.random.default_rng(1).random(cells.shape)
    seeds = np.zeros(cells.shape)
    seeds[1, 1], seeds[2, 5] = 1, -1
    system, right = np.zeros((height * width,) * 2), np.zeros(height * width)
    for y in range(height):
        for x in range(width):
            here = y * width + x
            firm = 0.1 + 1e3 * abs(seeds[y, x])
            system[here, here] += firm
            right[here] = 0.1 * belief[y, x] + 1e3 * (seeds[y, x] > 0)
            for other, bond in ((here + 1, cells._right[y, x]), (here + width, cells._down[y, x])):
                if bond:
                    system[[here, other], [here, other]] += bond
                    system[[here, other], [other, here]] -= bond
    expected = np.linalg.solve(system, right).reshape(cells.shape)
    np.testing.assert_allclose(cells.settled(belief, seeds), expected, atol=2e-3)


def test_features_that_do_not_differ_leave_the_walk_to_colours() -> None:
    seen = picture(things(HEIGHT, WIDTH, [LEFT]))
    seen.patches.fill_(1.0)
    found = PromptSession(seen).mask([_point(20, 20), _point(60, 40, False)])
    assert np.isfinite(found).all()
    assert found[20, 20] == 1
    assert found[40, 60] == 0


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "nothing shows yet what is meant"),
        ([_point(5, 5, False)], "nothing shows yet what is meant"),
        ([_point(72, 5)], "outside the picture of 72 x 48"),
        ([_point(float("nan"), 5)], "outside the picture"),
        ([Prompt("box", ((1, 1),))], "a box with 1 points; give two opposite corners"),
        ([Prompt("box", ((80, 1), (90, 9)))], "is outside the picture of 72 x 48"),
        ([Prompt("point", ((1, 1), (2, 2)))], "a point with 2 points; give x and y of one"),
        ([Prompt("stroke", ())], "a stroke with 0 points; give at least one"),
        ([Prompt("stroke", ((1, 1),), radius=-1)], "a stroke of radius -1"),
        (
            [Prompt("box", ((1, 1), (9, 9))), Prompt("box", ((0, 0), (71, 47)), positive=False)],
            "leave nothing of the picture",
        ),
    ],
)
def test_prompts_that_say_nothing_are_refused(two: np.ndarray, prompts: list[Prompt], message: str) -> None:
    with pytest.raises(FovealError, match=message):
        PromptSession(picture(two)).mask(prompts)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(FovealError, match="softness=0"):
        PromptSettings(softness=0)
    with pytest.raises(FovealError, match="colour_share"):
        Sharpness(colour_share=2)
