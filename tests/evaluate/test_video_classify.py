from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate import linear_cached
from foveal.evaluate.layouts.clips import evenly_spaced, open_clips
from foveal.evaluate.linear_grid import inputs_of, layers_of
from foveal.evaluate.video_classify import join_frames, run
from foveal.features.extract import Model

RED, BLUE = (230, 20, 30), (20, 30, 220)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Clips of 4 frames that are the same pictures in two orders: red then blue, and blue then red."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 5), ("test", 2)):
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
    unit = frames / frames.norm(dim=1, keepdim=True)
    mean = join_frames(unit, num_frames=2, join="mean")
    torch.testing.assert_close(mean, (unit[::2] + unit[1::2]) / 2)
    assert mean.std(dim=0).mean() < 0.1 * unit.std(dim=0).mean()  # what is left is noise


def test_linear_classifiers_see_the_joined_frames_of_all_blocks(model: Model, clips: Path) -> None:
    """Against the grid of images, given what it would see where a clip were one image."""
    train, test = (open_clips(clips / part, num_frames=2) for part in ("train", "test"))
    layers = layers_of(model.card.backbone.depth)
    joined, labels = [], []
    for part in (train, test):
        found = model.extract_set(part.frames, what=("cls", "mean"), layers=layers).arrays
        pairs = {one: frames.unflatten(0, (-1, 2)) for one, frames in inputs_of(found, layers).items()}
        joined.append({one: torch.cat([frames[:, 0], frames[:, 1]], dim=1) for one, frames in pairs.items()})
        labels.append(torch.tensor([0] * (len(part) // 2) + [1] * (len(part) // 2)))
    expected = linear_cached.score(joined[0], labels[0], joined[1], labels[1], num_classes=2, num_steps=40)
    found = run(model, train, test, classifier="linear", join="concatenate", num_steps=40)
    assert found == expected
    assert found[0].value == 100


def test_frames_are_the_middles_of_equal_parts(clips: Path) -> None:
    found = open_clips(clips / "test", num_frames=2)
    assert [found.frames.uri(i) for i in range(2)] == ["falling/clip0/1.png", "falling/clip0/3.png"]
    assert (len(found), found.labels) == (4, ["falling", "falling", "rising", "rising"])
    assert evenly_spaced(80, 8) == [5, 15, 25, 35, 45, 55, 65, 75]


def test_bad_clips_are_named(model: Model, clips: Path) -> None:
    train, test = open_clips(clips / "train", num_frames=1), open_clips(clips / "test", num_frames=1)
    with pytest.raises(FovealError, match="join 'sum' is not known"):
        run(model, train, test, join="sum")  # type: ignore[arg-type]
    with pytest.raises(FovealError, match="classifier 'svm' is not known; choose knn or linear"):
        run(model, train, test, classifier="svm")  # type: ignore[arg-type]
    with pytest.raises(FovealError, match="4 train clips; a tenth of them chooses"):
        run(model, test, train, classifier="linear")
    with pytest.raises(FovealError, match="k=10, 20, 100, 200 with 4 train clips"):
        run(model, test, train)
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
