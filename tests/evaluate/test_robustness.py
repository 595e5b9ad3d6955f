from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate import robustness
from foveal.evaluate.corruptions.conditions import Condition, Corrupted, all_conditions, generate, open_corrupted
from foveal.evaluate.corruptions.corrupt import CORRUPTIONS, corrupt, generator_of
from foveal.evaluate.robustness import ALEXNET_ERRORS, _measures, run, run_head
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet
from foveal.tasks.fit_classes import fit_classifier
from foveal.tasks.head import Head
from foveal.tasks.kinds import head_card
from foveal.tasks.protocols import fit_settings

TWO = [Condition("brightness", 5), Condition("contrast", 5)]


@pytest.fixture
def train(colours: Path) -> ImageSet:
    return ImageSet.open(colours / "train")


@pytest.fixture
def test(colours: Path) -> ImageSet:
    return ImageSet.open(colours / "test")


def _value(measures: list, metric: str) -> float:
    (found,) = [one.value for one in measures if one.metric == metric]
    return found


def _save_corrupted(test: ImageSet, folder: Path, conditions: list[Condition], *, group: str = "") -> None:
    for name, severity in conditions:
        for index in range(len(test)):
            path = folder / group / name / str(severity) / test.uri(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = corrupt(test.decode(index), name, severity, generator_of("x", name, severity, seed=0))
            Image.fromarray(pixels).save(path)


def test_colours_are_told_apart_in_light_and_not_without_contrast(
    model: Model, train: ImageSet, test: ImageSet
) -> None:
    found = run(model, train, test, generate(test, TWO, margin=1.0), k=3)
    assert [one.metric for one in found] == [
        "clean top-1",
        "corrupted top-1",
        "corruption error",
        "brightness top-1",
        "contrast top-1",
        "brightness 5 top-1",
        "contrast 5 top-1",
    ]
    assert _value(found, "clean top-1") == 100
    assert _value(found, "brightness top-1") == 100
    both = (_value(found, "brightness top-1") + _value(found, "contrast top-1")) / 2
    assert _value(found, "corrupted top-1") == pytest.approx(both)
    assert _value(found, "corruption error") == pytest.approx(100 - both)


def test_logistic_regression_classifies_as_well(model: Model, train: ImageSet, test: ImageSet) -> None:
    found = run(model, train, test, generate(test, TWO[:1], margin=1.0), classifier="logistic")
    assert _value(found, "clean top-1") == 100


def test_generated_pictures_are_corrupted_centres(test: ImageSet) -> None:
    (images,) = generate(test, [Condition("gaussian_noise", 2)], margin=1.0, seed=5).sets.values()
    seen = images.decode(1)
    assert seen.shape == (224, 224, 3)
    picture = Image.fromarray(test.decode(1)).resize((int(224 * 37 / 30), 224), Image.Resampling.BICUBIC)
    left = round((picture.width - 224) / 2)
    pixels = np.asarray(picture)[:, left : left + 224]
    generator = generator_of(test.uri(1), "gaussian_noise", 2, seed=5)
    np.testing.assert_array_equal(seen, corrupt(pixels, "gaussian_noise", 2, generator))
    (other,) = generate(test, [Condition("gaussian_noise", 2)], margin=1.0, seed=6).sets.values()
    assert (other.decode(1) != seen).any()


def test_measures_are_means_by_hand() -> None:
    clean = np.array([1.0, 1.0, 0.0])
    right = {
        Condition("fog", 1): np.array([1.0, 0.0, 0.0]),
        Condition("fog", 2): np.array([1.0, 1.0, 0.0]),
        Condition("snow", 1): np.array([0.0, 0.0, 0.0]),
    }
    found = _measures(clean, right, against_alexnet=True, seed=0)
    assert _value(found, "clean top-1") == pytest.approx(200 / 3)
    assert _value(found, "corrupted top-1") == pytest.approx(100 / 3)
    assert _value(found, "fog top-1") == pytest.approx(50)
    assert _value(found, "snow 1 top-1") == 0
    expected = 100 * np.mean([50 / ALEXNET_ERRORS["fog"], 100 / ALEXNET_ERRORS["snow"]])
    assert _value(found, "mCE") == pytest.approx(expected)


def test_errors_of_alexnet_have_the_published_mean() -> None:
    assert list(ALEXNET_ERRORS) == list(CORRUPTIONS)
    assert np.mean(list(ALEXNET_ERRORS.values())) == pytest.approx(78.85, abs=0.05)  # 1903.12261: 78.8 unnormalised


def test_an_interrupted_evaluation_goes_on(
    model: Model, train: ImageSet, test: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(model, train, test, generate(test, TWO, margin=1.0), k=3)
    done: list[int] = []

    def stop(count: int, total: int) -> None:
        assert total == 21 + 3 * 9
        done.append(count)
        if count > 21 + 9 + 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, train, test, generate(test, TWO, margin=1.0), k=3, state=tmp_path / "state", progress=stop)
    (kept,) = (tmp_path / "state").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == [
        "brightness-5.safetensors",
        "clean.safetensors",
        "train.safetensors",
    ]
    encoded: list[int] = []
    monkeypatch.setattr(
        robustness.Model,  # the pictures that are encoded after all
        "extract_set",
        lambda self, images, _extract=Model.extract_set, **named: (
            encoded.append(len(images)) or _extract(self, images, **named)
        ),
    )
    assert run(model, train, test, generate(test, TWO, margin=1.0), k=3, state=tmp_path / "state") == whole
    assert encoded == [9]
    assert not (tmp_path / "state").exists()


def test_a_damaged_state_is_named(model: Model, train: ImageSet, test: ImageSet, tmp_path: Path) -> None:
    def stop(count: int, total: int) -> None:
        if count > 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, train, test, generate(test, TWO, margin=1.0), k=3, state=tmp_path, progress=stop)
    (path,) = tmp_path.glob("*/train.safetensors")
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(FovealError, match=r"train\.safetensors is damaged; remove it"):
        run(model, train, test, generate(test, TWO, margin=1.0), k=3, state=tmp_path)


@pytest.mark.parametrize("group", ["", "weather"])
def test_pictures_as_distributed_are_read(
    model: Model, train: ImageSet, test: ImageSet, tmp_path: Path, group: str
) -> None:
    conditions = [Condition("brightness", 1), Condition("brightness", 4)]
    _save_corrupted(test, tmp_path / "C", conditions, group=group)
    corrupted = open_corrupted(tmp_path / "C", conditions)
    assert not corrupted.generated
    found = run(model, train, test, corrupted, k=3)
    assert _value(found, "brightness 4 top-1") == 100
    assert "mCE" not in [one.metric for one in found]  # not all corruptions


def test_a_complete_set_of_files_has_mce(model: Model, train: ImageSet, test: ImageSet) -> None:
    sets = {one: ImageSet(test.rows, root=test.root) for one in all_conditions()[::5]}
    assert not Corrupted(sets).complete
    assert Corrupted(dict.fromkeys(all_conditions(), test)).complete


def test_missing_folders_and_pictures_are_named(test: ImageSet, tmp_path: Path) -> None:
    _save_corrupted(test, tmp_path, TWO)
    with pytest.raises(ImageSetError, match="has no fog/1, nor below noise, blur, weather or digital"):
        open_corrupted(tmp_path, [*TWO, Condition("fog", 1)])
    (tmp_path / "contrast" / "5" / "red" / "1.png").unlink()
    with pytest.raises(ImageSetError, match=r"brightness 5 and contrast 5 .* 1 are in one of them alone, first red/1"):
        open_corrupted(tmp_path, TWO)


def test_a_picture_that_is_damaged_under_one_condition_is_refused(
    model: Model, train: ImageSet, test: ImageSet, tmp_path: Path
) -> None:
    _save_corrupted(test, tmp_path, TWO)
    (tmp_path / "contrast" / "5" / "red" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ImageSetError, match="9 images can be read under brightness 5, and 8 under contrast 5"):
        run(model, train, test, open_corrupted(tmp_path, TWO), k=3)


def test_what_cannot_be_evaluated_is_said_first(model: Model, train: ImageSet, test: ImageSet) -> None:
    with pytest.raises(FovealError, match="k=22 neighbours among 21 train images"):
        run(model, train, test, generate(test, TWO, margin=1.0), k=22)
    with pytest.raises(ImageSetError, match="are train images as well"):
        run(model, train, train, generate(train, TWO, margin=1.0), k=3)
    with pytest.raises(FovealError, match="each once"):
        all_conditions(["fog", "fog"])
    with pytest.raises(FovealError, match="no corruption is called 'mist'"):
        all_conditions(["mist"])


@pytest.fixture
def head(model: Model, train: ImageSet) -> Head:
    card = head_card(model, "classification", "linear", classes=["blue", "green", "red"])
    return fit_classifier(
        model, card, train, fit_settings("classification", steps=40, batch_size=8, learning_rate=3e-3)
    ).head


def test_a_head_classifies_what_it_would_predict(model: Model, test: ImageSet, head: Head, tmp_path: Path) -> None:
    corrupted = generate(test, TWO, margin=32 / 28)
    found = run_head(model, head, test, corrupted, state=tmp_path / "state")
    assert _value(found, "clean top-1") == 100
    assert not (tmp_path / "state").exists()
    whole = Model(model.engine, model.card.model_copy(update={"resize_size": 28}))
    for condition, images in corrupted.sets.items():
        names = [whole.with_head(head).predict(images.decode(index)).name for index in range(len(images))]
        right = [name == label for name, label in zip(names, images.labels or [], strict=True)]
        assert _value(found, f"{condition.corruption} 5 top-1") == pytest.approx(100 * np.mean(right))


def test_labels_that_a_head_does_not_know_are_refused(model: Model, test: ImageSet, head: Head, colours: Path) -> None:
    (colours / "test" / "red").rename(colours / "test" / "pink")
    pink = ImageSet.open(colours / "test")
    with pytest.raises(ImageSetError, match="does not know, first pink"):
        run_head(model, head, pink, generate(pink, TWO, margin=1.0))
