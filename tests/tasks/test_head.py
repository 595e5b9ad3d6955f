import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from foveal.errors import FovealError, WeightsError
from foveal.features.extract import Model
from foveal.tasks.head import Head, HeadCard, build_network, load_head, save_head
from foveal.tasks.predict import Predictor
from foveal.tasks.windows import resized_bands, slide, window_starts


def make_head(model: Model, *, task: str = "segmentation", seed: int = 0) -> Head:
    backbone = model.card.backbone
    settings = {
        "segmentation": {"num_levels": 1, "num_classes": 5},
        "depth": {"num_levels": 1, "num_bins": 7, "min_depth": 0.5, "max_depth": 4.0},
    }[task]
    card = HeadCard(
        name="mine",
        task=task,  # type: ignore[arg-type]
        architecture="linear",
        settings=settings,
        layers=[backbone.depth - 1],
        norm=task == "segmentation",
        backbone=model.identity,
        backbone_name=model.card.name,
        width=backbone.width,
        depth=backbone.depth,
        classes=list("abcde") if task == "segmentation" else [],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(card)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter)
    return Head(network.eval(), card)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_head_comes_back_from_its_folder(model: Model, tmp_path: Path, task: str) -> None:
    head = make_head(model, task=task)
    card = save_head(tmp_path / "head", head)
    again = load_head(tmp_path / "head")
    assert again.card == card
    image = picture(61, 83)
    np.testing.assert_array_equal(model.with_head(again).predict(image), Predictor(model, head).predict(image))
    save_head(tmp_path / "head", make_head(model, task=task, seed=1))  # over an earlier one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head"]


def test_head_of_another_backbone_is_refused(model: Model, other_model: Model) -> None:
    with pytest.raises(WeightsError, match=r"fitted on tiny .* and this model is tiny .*; load that backbone"):
        other_model.with_head(make_head(model))


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_answer_that_is_no_number_is_refused(model: Model, task: str) -> None:
    head = make_head(model, task=task)
    with torch.no_grad():
        next(head.network.parameters()).mul_(float("inf"))
    with pytest.raises(FovealError, match="the head mine answers numbers that are not finite; fit it again"):
        model.with_head(head).predict(picture(30, 40))


def test_damaged_and_foreign_folders_are_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a head folder"):
        load_head(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WeightsError, match="exists and is not a head folder"):
        save_head(tmp_path, make_head(model))
    folder = tmp_path / "head"
    save_head(folder, make_head(model))
    card = json.loads((folder / "head.json").read_text())
    (folder / "head.json").write_text(json.dumps({**card, "architecture": "forest"}))
    with pytest.raises(FovealError, match="architecture='forest' for segmentation; choose linear, mlp, dpt"):
        load_head(folder)
    (folder / "head.json").write_text(json.dumps(card))
    with open(folder / "head.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match="is damaged: its sha256"):
        load_head(folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layers": [0, 1]}, r"layers=\[0, 1\] for a head that reads 1"),
        ({"classes": ["a"]}, "1 names for 5 classes"),
        ({"width": -1}, "negative dimension"),
        (
            {"task": "classification", "architecture": "attentive", "settings": {"num_heads": 5, "num_classes": 5}},
            "divisible by num_heads",
        ),
    ],
)
def test_card_that_contradicts_itself_is_refused(
    model: Model, tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    save_head(tmp_path / "head", make_head(model))
    path = tmp_path / "head" / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(WeightsError, match=rf"head.json cannot be understood \(.*{said}"):
        load_head(tmp_path / "head")


def test_windows_cover_a_side_and_end_with_it() -> None:
    assert window_starts(1000, crop_size=512, stride=341) == [0, 341, 488]
    assert window_starts(300, crop_size=512, stride=341) == [0]
    assert window_starts(512, crop_size=512, stride=341) == [0]
    assert window_starts(853, crop_size=512, stride=341) == [0, 341]
    with pytest.raises(FovealError, match="windows of 4 pixels every 5"):
        window_starts(9, crop_size=4, stride=5)


@pytest.mark.parametrize(("height", "width"), [(11, 17), (5, 23), (24, 3)])
def test_bands_are_the_mean_over_windows(height: int, width: int) -> None:
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))

    def scores(rows: slice, columns: slice) -> Tensor:  # depends on where the window lies
        window = image[:, rows, columns]
        return window[:2] + window.mean()

    total, counts = np.zeros((2, height, width)), np.zeros((height, width))
    for top in window_starts(height, crop_size=7, stride=4):
        for left in window_starts(width, crop_size=7, stride=4):
            part = image[:, top : top + 7, left : left + 7].numpy()
            total[:, top : top + 7, left : left + 7] += part[:2] + part.mean()
            counts[top : top + 7, left : left + 7] += 1
    bands = list(slide(scores, (height, width), crop_size=7, stride=4))
    starts = [*window_starts(height, crop_size=7, stride=4), height]
    assert [band.shape[1] for band in bands] == np.diff(starts).tolist()
    np.testing.assert_allclose(torch.cat(bands, dim=1), total / counts, rtol=1e-5)


@pytest.mark.parametrize("size", [(29, 31), (5, 7), (13, 40), (60, 11), (13, 17)])
@pytest.mark.parametrize("heights", [[13], [5, 5, 3], [1] * 13])
def test_maps_are_resized_in_bands_as_at_once(size: tuple[int, int], heights: list[int]) -> None:
    maps = torch.randn(2, 13, 17, generator=torch.Generator().manual_seed(0))
    bands = list(resized_bands(maps.split(heights, dim=1), shape=(13, 17), size=size, max_values=3 * 2 * size[1]))
    if size != (13, 17):  # those pass as they come
        assert max(band.shape[1] for band in bands) <= 3
    wanted = torch.nn.functional.interpolate(maps[None], size=size, mode="bilinear")[0]
    torch.testing.assert_close(torch.cat(bands, dim=1), wanted, atol=2e-6, rtol=0)


def test_head_sees_pictures_at_the_size_it_was_fitted_at(model: Model) -> None:
    head = make_head(model)
    fitted = Head(head.network, head.card.model_copy(update={"lineage": {"fit": {"size": 56}}}))
    image = picture(40, 30)
    np.testing.assert_array_equal(model.with_head(fitted).predict(image), model.with_head(head).predict(image, size=56))
    assert (model.with_head(fitted).predict(image) != model.with_head(head).predict(image)).any()


@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_are_those_behind_the_mask(model: Model, tmp_path: Path, flip: bool) -> None:
    predictor, image = model.with_head(make_head(model)), picture(45, 71)
    mask = predictor.predict(image, flip=flip, crop_size=28, stride=19, probabilities=tmp_path / "one.npy")
    found = np.load(tmp_path / "one.npy")
    assert (found.dtype, found.shape) == (np.float16, (5, 45, 71))
    np.testing.assert_allclose(found.astype(np.float32).sum(axis=0), 1, atol=2e-3)
    assert (found.argmax(axis=0) == mask).mean() > 0.99  # but for ties of float16
    np.testing.assert_array_equal(mask, predictor.predict(image, flip=flip, crop_size=28, stride=19))
    assert [path.name for path in tmp_path.iterdir()] == ["one.npy"]
    with pytest.raises(FovealError, match="probabilities are of masks"):
        model.with_head(make_head(model, task="depth")).predict(image, probabilities=tmp_path / "two.npy")


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_large_pictures_are_seen_in_windows_and_answered_in_bands(
    model: Model, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr("foveal.tasks.predict.MAX_WHOLE_PIXELS", 3_000)
    monkeypatch.setattr("foveal.tasks.predict.CROP_SIZE", 56)
    monkeypatch.setattr("foveal.tasks.predict.STRIDE", 42)
    predictor = model.with_head(make_head(model, task=task))
    seen: list[tuple[int, ...]] = []

    def scores(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return torch.zeros(len(images), 5, *images.shape[2:])

    monkeypatch.setattr(predictor, "scores", scores)
    bands = predictor.bands(picture(200, 70), size=None, flip=False, crop_size=None, stride=None)
    assert [band.shape[1] for band in bands] == [42, 42, 42, 18, 56]
    assert set(seen) == {(1, 3, 56, 56)}
    assert len(seen) == 10


@pytest.mark.parametrize("task", ["segmentation", "depth"])
@pytest.mark.parametrize("options", [{}, {"size": 40}, {"crop_size": 28, "stride": 19}, {"flip": True}])
def test_answers_have_the_size_of_the_picture(model: Model, task: str, options: dict[str, int]) -> None:
    found = model.with_head(make_head(model, task=task)).predict(picture(45, 71), **options)
    assert found.shape == (45, 71)
    if task == "depth":
        assert found.dtype == np.float32
        assert 0.5 <= found.min() < found.max() <= 4.0
    else:
        assert found.dtype == np.uint16
        assert len(np.unique(found)) > 1


def test_mirrored_picture_gets_the_mirrored_answer_with_flip(model: Model) -> None:
    predictor = model.with_head(make_head(model, task="depth"))
    image = picture(42, 70)
    both = [predictor.predict(one, flip=True) for one in (image, np.ascontiguousarray(image[:, ::-1]))]
    np.testing.assert_allclose(both[0], both[1][:, ::-1], atol=1e-4)
    assert np.abs(predictor.predict(image) - both[0]).max() > 1e-3


def test_padding_is_cut_off_again(model: Model) -> None:
    """A picture whose border is the mean colour gets the same answer as without that border."""
    predictor = model.with_head(make_head(model, task="depth"))
    image = torch.randn(1, 3, 38, 60, generator=torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(image, (5, 5, 2, 2))
    assert padded.shape[2:] == (42, 70)
    torch.testing.assert_close(predictor.scores(image), predictor.scores(padded)[:, :, 2:40, 5:65])
