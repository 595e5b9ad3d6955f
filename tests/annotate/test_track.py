import numpy as np
import pytest
from hand_made import iou, picture, things

from foveal.annotate.cells import Sharpness
from foveal.annotate.track import Following, follow
from foveal.errors import FovealError
from foveal.evaluate.video import Tracking
from foveal.features.seen import SeenImage

HEIGHT, WIDTH, NUM_FRAMES = 32, 48, 6


def _truth(index: int) -> np.ndarray:
    """A thing that goes 4 pixels to the right with every frame."""
    return things(HEIGHT, WIDTH, [(8, 4 + 4 * index, 24, 20 + 4 * index)])


def _frame(index: int) -> SeenImage:
    return picture(_truth(index), seed=index)


@pytest.mark.parametrize("following", [Following(), Following(sharpness=Sharpness())])
def test_a_mask_follows_the_thing_to_the_end(following: Following) -> None:
    found = list(follow(_frame, NUM_FRAMES, {0: _truth(0)}, following=following))
    assert [index for index, _ in found] == [1, 2, 3, 4, 5]
    for index, ids in found:
        assert ids.dtype == np.uint8
        assert iou(ids == 1, _truth(index)) > 0.9


def test_a_correction_goes_on_from_its_frame_and_leaves_the_earlier_ones() -> None:
    """From frame 3 on the right part is another object, 7, as the correction says; the left stays 1."""
    corrected = _truth(3).astype(np.uint8)
    corrected[:, 24:] *= 7
    asked: list[int] = []

    def frame(index: int) -> SeenImage:
        asked.append(index)
        seen = _frame(index)
        if index >= 3:
            seen.patches[:, 3 + index :, 3] += 1.0  # what tells the right part
        return seen

    found = dict(follow(frame, NUM_FRAMES, {0: _truth(0), 3: corrected}, start=3))
    assert sorted(found) == [4, 5]
    assert asked == [0, 3, 4, 5]
    assert set(np.unique(found[5])) == {0, 1, 7}
    assert iou(found[5] == 7, _truth(5) & (np.arange(WIDTH) >= 32)) > 0.8


def test_a_given_frame_keeps_its_mask_on_the_way() -> None:
    given = {0: _truth(0).astype(np.uint8), 2: np.roll(_truth(2), 3, axis=0).astype(np.uint8)}
    found = dict(follow(_frame, NUM_FRAMES, given))
    np.testing.assert_array_equal(found[2], given[2])
    assert sorted(found) == [1, 2, 3, 4, 5]


def test_only_the_given_frames_and_a_few_others_are_looked_at() -> None:
    following = Following(tracking=Tracking(num_previous=0, radius=2))
    found = dict(follow(_frame, 3, {0: _truth(0)}, following=following))
    assert iou(found[1] == 1, _truth(1)) > 0.9


@pytest.mark.parametrize(
    ("given", "start", "message"),
    [
        ({}, None, "no mask to follow"),
        ({6: _truth(0)}, None, "frame 6; the video has frames 0 to 5"),
        ({0: np.zeros((HEIGHT, WIDTH), bool)}, None, "show no object"),
        ({0: _truth(0)}, 2, "start=2 has no mask; start from 0"),
        ({0: np.ones((HEIGHT, WIDTH))}, None, "type float64; give"),
        ({0: _truth(0).T}, None, "a mask of 32 x 48 pixels for a picture of 48 x 32"),
    ],
)
def test_what_cannot_be_followed_is_refused(given: dict[int, np.ndarray], start: int | None, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        list(follow(_frame, NUM_FRAMES, given, start=start))
