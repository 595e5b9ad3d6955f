import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.errors import BadImageError, FovealError, ImageSetError
from foveal.evaluate.layouts.davis import hash_of, open_davis
from foveal.evaluate.video import Scores, Tracking, frame_shape, largest_mask, run, summarise, track
from foveal.evaluate.video_metrics import Course, region_similarity
from foveal.features.extract import Model
from foveal.images.decode import decode_ids
from foveal.images.masks import encode_ids

SMALL = Tracking(short_side=28, radius=3)


def _write(folder: Path, name: str, frames: list[np.ndarray], masks: list[bytes]) -> None:
    for kind in ("JPEGImages", "Annotations"):
        (folder / kind / "480p" / name).mkdir(parents=True)
    for index, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
        Image.fromarray(frame).save(folder / "JPEGImages" / "480p" / name / f"{index:05d}.jpg", quality=100)
        (folder / "Annotations" / "480p" / name / f"{index:05d}.png").write_bytes(mask)


def _moving(colours: list[tuple[int, int, int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return 5 frames (28, 56) of squares, one a colour, that move two pixels a frame, and their numbers."""
    frames, masks = [], []
    for step in range(5):
        frame, ids = np.full((28, 56, 3), 40, np.uint8), np.zeros((28, 56), np.uint8)
        for number, colour in enumerate(colours):
            place = np.s_[7 * number + 7 : 7 * number + 14, 7 + 2 * step : 28 + 2 * step]
            frame[place], ids[place] = colour, number + 1
        frames.append(frame)
        masks.append(ids)
    return frames, masks


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Two sequences: "grey", one object, masks of 0 and 255; "palette", two objects and pixels that do not count."""
    frames, masks = _moving([(230, 20, 30)])
    grey = [Image.fromarray(mask * 255) for mask in masks]
    _write(tmp_path, "grey", frames, [b""] * 5)
    for index, picture in enumerate(grey):
        picture.save(tmp_path / "Annotations" / "480p" / "grey" / f"{index:05d}.png")
    frames, masks = _moving([(230, 20, 30), (20, 30, 220)])
    masks[2][0, :] = 255
    _write(tmp_path, "palette", frames, [encode_ids(mask) for mask in masks])
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("palette\n")
    (tmp_path / "ImageSets" / "480p").mkdir()
    (tmp_path / "ImageSets" / "480p" / "train.txt").write_text(
        "".join(f"/JPEGImages/480p/grey/{i:05d}.jpg /Annotations/480p/grey/{i:05d}.png\n" for i in range(5))
    )
    return tmp_path


def test_squares_are_followed(model: Model, davis: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    measures = run(
        model, open_davis(davis), tracking=SMALL, masks_out=tmp_path / "out", progress=lambda *p: seen.append(p)
    )
    found = {measure.metric: measure.value for measure in measures}
    assert list(found) == ["J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay"]
    assert found["J mean"] > 60
    assert found["J&F"] == pytest.approx((found["J mean"] + found["F mean"]) / 2)
    assert seen[-1] == (10, 10)
    video = open_davis(davis, sequences=["palette"])[0]
    values = []
    for index in (1, 2, 3):  # neither the first nor the last
        ids, has_palette = decode_ids((tmp_path / "out" / "palette" / f"{index:05d}.png").read_bytes())
        assert has_palette
        truth, void = video.mask(index)
        values += [region_similarity(ids == number, truth == number, void=void) for number in (1, 2)]
    alone = run(model, [video], tracking=SMALL)
    assert alone[1].value == pytest.approx(100 * np.mean(values))
    first, _ = decode_ids((tmp_path / "out" / "palette" / "00000.png").read_bytes())
    assert np.array_equal(first, video.mask(0)[0])


def test_an_interrupted_evaluation_goes_on_with_the_next_sequence(model: Model, davis: Path, tmp_path: Path) -> None:
    videos = open_davis(davis)
    whole = run(model, videos, tracking=SMALL)
    kept = tmp_path / "kept"

    def stop(done: int, _: int) -> None:
        if done == 8:  # in the second sequence
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, videos, tracking=SMALL, folder=kept, progress=stop)
    assert [path.name for path in kept.glob("*.json")] == ["grey.json"]
    shutil.rmtree(davis / "JPEGImages" / "480p" / "grey")  # not looked at again
    assert run(model, videos, tracking=SMALL, folder=kept) == whole
    (kept / "grey.json").write_text('{"regions": [[1, 1]], "contours": []}')
    with pytest.raises(FovealError, match=r"grey\.json is damaged; remove it"):
        run(model, videos, tracking=SMALL, folder=kept)


def test_a_frame_that_stays_keeps_its_masks(model: Model, davis: Path) -> None:
    """Patches of equal frames are most similar to themselves: what is left is the rounding of masks to patches."""
    folder = davis / "JPEGImages" / "480p" / "palette"
    noise = np.random.default_rng(0).integers(0, 255, (28, 56, 3), dtype=np.uint8)
    for path in folder.iterdir():
        Image.fromarray(noise).save(path, quality=100)
    video = open_davis(davis, split="val")[0]
    ids = video.mask(0)[0]
    small = ids[3::7, 3::7]
    one_hot = torch.from_numpy(small == np.arange(3)[:, None, None]).float()
    expected = largest_mask(one_hot, patch_size=7)
    for predicted in track(model, video, SMALL._replace(top_k=1)):
        assert np.array_equal(predicted, expected)


def test_objects_of_both_kinds_of_masks(davis: Path) -> None:
    grey, palette = open_davis(davis)
    assert np.unique(grey.mask(2)[0]).tolist() == [0, 1]
    assert not grey.mask(2)[1].any()
    assert np.unique(palette.mask(2)[0]).tolist() == [0, 1, 2]
    assert palette.mask(2)[1].sum() == 56


def test_lists_of_both_years_are_read(davis: Path) -> None:
    assert [video.name for video in open_davis(davis, split="val")] == ["palette"]
    assert [video.name for video in open_davis(davis, split="train")] == ["grey"]
    assert hash_of(open_davis(davis)) != hash_of(open_davis(davis, split="val"))
    with pytest.raises(ImageSetError, match=r"none of .*ImageSets/2017/test\.txt"):
        open_davis(davis, split="test")
    with pytest.raises(ImageSetError, match="has no sequence bear; it has grey, palette"):
        open_davis(davis, sequences=["bear"])


def _rewrite_mask(davis: Path, index: int, mask: np.ndarray) -> None:
    (davis / "Annotations" / "480p" / "palette" / f"{index:05d}.png").write_bytes(encode_ids(mask))


def test_what_is_missing_is_named(davis: Path) -> None:
    masks, frames = davis / "Annotations" / "480p" / "palette", davis / "JPEGImages" / "480p" / "palette"
    (masks / "00003.png").unlink()
    with pytest.raises(ImageSetError, match=r"lacks 1 of 5 files: Annotations/480p/palette/00003\.png"):
        open_davis(davis)
    (frames / "00003.jpg").unlink()
    with pytest.raises(ImageSetError, match="lacks 1 frames between its first and last, first number 3"):
        open_davis(davis)
    (frames / "00004.jpg").unlink()
    with pytest.raises(ImageSetError, match=r"lacks 1 frames that have a mask, first 00004\.jpg"):
        open_davis(davis)
    (masks / "00004.png").unlink()
    (davis / "JPEGImages" / "480p" / "grey" / "00000.jpg").rename(frames / "00003.jpg")
    shutil.rmtree(davis / "JPEGImages" / "480p" / "grey")
    with pytest.raises(ImageSetError, match=r"lacks 1 of 4 files"):
        open_davis(davis)
    with pytest.raises(ImageSetError, match="1080p does not exist"):
        open_davis(davis, resolution="1080p")
    shutil.rmtree(frames)
    with pytest.raises(ImageSetError, match="palette holds no frame"):
        open_davis(davis, split="val")


def test_masks_that_do_not_fit_are_named(davis: Path) -> None:
    _rewrite_mask(davis, 3, np.zeros((28, 55), np.uint8))
    with pytest.raises(
        ImageSetError, match=r"palette/00003\.png has 55 x 28 pixels, the first mask of palette 56 x 28"
    ):
        open_davis(davis)
    _rewrite_mask(davis, 0, np.zeros((28, 56), np.uint8))
    with pytest.raises(ImageSetError, match=r"palette/00000\.png shows no object"):
        open_davis(davis)
    shutil.copy(davis / "JPEGImages/480p/palette/00000.jpg", davis / "Annotations/480p/palette/00000.png")
    with pytest.raises(BadImageError, match=r"palette/00000\.png: a mask as JPEG"):
        open_davis(davis)


def test_sequences_too_short_to_measure_are_refused(davis: Path) -> None:
    for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
        for index in (2, 3, 4):
            (davis / kind / "480p" / "palette" / f"{index:05d}.{ending}").unlink()
    with pytest.raises(ImageSetError, match="palette has 2 frames; the first and the last do not count"):
        open_davis(davis)


def test_settings_are_checked_before_a_frame_is_seen(model: Model, davis: Path) -> None:
    videos = open_davis(davis)
    with pytest.raises(FovealError, match="short_side=6"):
        run(model, videos, tracking=Tracking(short_side=6))
    with pytest.raises(FovealError, match="patches of an image"):
        run(model, videos, tracking=Tracking(short_side=7000))
    with pytest.raises(FovealError, match="no sequence to measure"):
        run(model, [])


def test_frames_are_seen_upright_or_lying() -> None:
    assert frame_shape(854, 480, short_side=480, patch_size=8) == (832, 480)
    assert frame_shape(300, 300, short_side=100, patch_size=14) == (98, 98)
    assert frame_shape(300, 300, short_side=48, patch_size=16) == (48, 48)


def test_weak_masks_are_stretched() -> None:
    masks = torch.tensor([[[0.9, 0.7]], [[0.1, 0.3]], [[0.0, 0.0]]])
    assert largest_mask(masks, patch_size=2).tolist() == [[0, 0, 1, 1]] * 2


def test_objects_count_alike_and_sequences_are_drawn() -> None:
    def scores(*means: float) -> Scores:
        courses = [Course(mean, 0.0, 0.25) for mean in means]
        return Scores(courses, courses)

    measures = {m.metric: m for m in summarise([scores(0.8), scores(0.2, 0.2, 0.4)])}
    assert measures["J mean"].value == pytest.approx(40)
    assert (measures["J mean"].low, measures["J mean"].high) == pytest.approx((80 / 3, 80))
    assert measures["F decay"][1:3] == (25, "points")


def test_real_sequences_are_recognised(real_images: Path) -> None:
    videos = open_davis(real_images / "davis", sequences=["blackswan"])
    assert videos[0].mask(0)[0].mean() == pytest.approx(0.1, abs=0.1)
    assert videos[0].frame(0).shape == (480, 854, 3)
