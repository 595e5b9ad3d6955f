from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.layouts.clips import evenly_spaced, open_clips
from foveal.evaluate.video_classify import join_frames, run
from foveal.features.extract import Model

RED, BLUE = (230, 20, 30), (20, 30, 220)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Clips of 4 frames that are the same pictures in two orders: red then blue, and blue then red."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 2)):
        for name, order in (("falling", (RED, RED, BLUE, BLUE)), ("rising", (BLUE, BLUE, RED, RED))):
            for number in range(count):
                folder = tmp_path / part / name / f"clip{number}"
                folder.mkdir(parents=True)
                for index, colour in enumerate(order):
                    picture = np.clip(np.array(colour) + generator.integers(-20, 20, (30, 37, 3)), 0, 255)
                    Image.fromarray(picture.astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path


def test_only_frames_in_their_order_tell_falling_from_rising(model: Model, clips: Path) -> None:
    train, test = (open_clips(clips / part, num_frames=2) for part in ("train", "test"))
    assert run(model, train, test, ks=[1], join="concatenate")[0].value == 100
    frames = model.extract_set(test.frames).arrays["cls"]
    mean = join_frames(frames, num_frames=2, join="mean")
    unit = frames / frames.norm(dim=1, keepdim=True)
    torch.testing.assert_close(mean, (unit[::2] + unit[1::2]) / 2)
    assert mean.std(dim=0).mean() < 0.1 * unit.std(dim=0).mean()  # what is left is noise


def test_frames_are_the_middles_of_equal_parts(clips: Path) -> None:
    found = open_clips(clips / "test", num_frames=2)
    assert [found.frames.uri(i) for i in range(2)] == ["falling/clip0/1.png", "falling/clip0/3.png"]
    assert (len(found), found.labels) == (4, ["falling", "falling", "rising", "rising"])
    assert evenly_spaced(80, 8) == [5, 15, 25, 35, 45, 55, 65, 75]


def test_bad_clips_are_named(model: Model, clips: Path) -> None:
    train, test = open_clips(clips / "train", num_frames=1), open_clips(clips / "test", num_frames=1)
    with pytest.raises(FovealError, match="join 'sum' is not known"):
        run(model, train, test, join="sum")  # type: ignore[arg-type]
    with pytest.raises(FovealError, match="1 frames of a train clip, 2 of a test clip"):
        run(model, train, open_clips(clips / "test", num_frames=2))
    (clips / "test" / "rising" / "clip1" / "2.png").write_bytes(b"damaged")
    with pytest.raises(ImageSetError, match=r"the frame rising/clip1/2\.png cannot be read"):
        run(model, train, test, ks=[1])
    (clips / "test" / "rising" / "empty").mkdir()
    with pytest.raises(ImageSetError, match="empty holds no frame"):
        open_clips(clips / "test")
    with pytest.raises(ImageSetError, match="holds no clip"):
        open_clips(clips / "test" / "rising" / "empty")
    with pytest.raises(ImageSetError, match="num_frames=0"):
        open_clips(clips / "test", num_frames=0)
