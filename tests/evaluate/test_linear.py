import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from foveal.errors import FovealError
from foveal.evaluate.linear import cross_chosen, run
from foveal.evaluate.linear_grid import Inputs
from foveal.evaluate.linear_training import Grid, LinearSettings
from foveal.evaluate.other_tests import open_other
from foveal.features.extract import Model
from foveal.features.random_views import RandomViews
from foveal.images.imageset import ImageSet

_SETTINGS = LinearSettings(num_steps=12, batch_size=8, learning_rates=(1.0, 30.0))


@pytest.fixture
def sets(colours: Path) -> tuple[ImageSet, ImageSet]:
    return ImageSet.open(colours / "train"), ImageSet.open(colours / "test")


def test_the_grid_is_trained_as_by_sgd_with_autograd(model: Model, sets: tuple[ImageSet, ImageSet]) -> None:
    settings = LinearSettings(num_steps=4, batch_size=6, learning_rates=(0.5, 3.0))
    grid = Grid(model, num_classes=3, settings=settings)
    labels = torch.arange(21) % 3
    assert grid.members == [(rate, Inputs(*key)) for key in ((1, 0), (1, 1), (2, 0), (2, 1)) for rate in (0.5, 3.0)]

    linears, optimizers, schedules = {}, [], []
    for inputs, part in grid.parts.items():
        for number, rate in enumerate((0.5, 3.0)):
            linear = linears[inputs, number] = nn.Linear(part.weight.shape[2], 3)
            linear.weight.data.copy_(part.weight[number])
            linear.bias.data.zero_()
            optimizers.append(torch.optim.SGD(linear.parameters(), lr=rate * 6 / 256, momentum=0.9))
            schedules.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[-1], 4))
    views = RandomViews(sets[0], model.preprocessing(), batch_size=6, seed=0)
    for step, (indices, arrays) in enumerate(views.batches(range(4))):
        grid.update(arrays, labels[indices], share=(1, 0.8535533905932737, 0.5, 0.14644660940672627)[step])
        blocks = model.engine.intermediate(torch.from_numpy(np.stack(arrays)), 2)
        cls, mean = torch.cat([one.cls for one in blocks], dim=1), blocks[-1].patches.mean(dim=1)
        for (inputs, _), linear in linears.items():
            read = cls[:, -48 * inputs.num_blocks :]
            read = torch.cat([read, mean], dim=1) if inputs.avgpool else read
            F.cross_entropy(linear(read.clone()), labels[indices]).backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    for (inputs, number), linear in linears.items():
        torch.testing.assert_close(grid.parts[inputs].weight[number], linear.weight.data, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(grid.parts[inputs].bias[number], linear.bias.data, atol=1e-5, rtol=1e-4)


def test_colours_are_told_apart(model: Model, sets: tuple[ImageSet, ImageSet]) -> None:
    done: list[tuple[int, int]] = []
    (found,) = run(model, *sets, settings=_SETTINGS, trained=lambda *step: done.append(step))
    names = ["top-1", "learning rate", "blocks", "mean patch token", "top-1, chosen on the other half"]
    assert [one.metric for one in found] == names
    assert (found[0].value, found[-1].value) == (100, 100)
    assert done == [(step, 12) for step in range(1, 13)]


class _Killed(Exception):
    pass


def test_an_interrupted_training_goes_on_to_the_bit(
    model: Model, sets: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    steps: list[int] = []

    def trained(done: int, _: int) -> None:
        steps.append(done)
        if len(steps) == 4:
            raise _Killed
        if done == 7:
            signal.raise_signal(signal.SIGINT)

    whole = run(model, *sets, settings=_SETTINGS, folder=tmp_path / "whole")
    parts = tmp_path / "parts"
    with pytest.raises(_Killed):
        run(model, *sets, settings=_SETTINGS, folder=parts, save_every_s=0, trained=trained)
    with pytest.raises(FovealError, match="is the state of a training with another model, data"):
        run(model, *sets, settings=LinearSettings(num_steps=12, batch_size=7), folder=parts)
    with pytest.raises(KeyboardInterrupt):  # saves whatever the clock says
        run(model, *sets, settings=_SETTINGS, folder=parts, trained=trained)
    assert run(model, *sets, settings=_SETTINGS, folder=parts, trained=trained) == whole
    assert steps == list(range(1, 13))
    ends = [load_file(tmp_path / name / "classifiers.safetensors") for name in ("whole", "parts")]
    assert len(ends[0]) == 16
    assert all(torch.equal(values, ends[1][name]) for name, values in ends[0].items())
    assert run(model, *sets, settings=_SETTINGS, folder=parts, trained=trained) == whole  # interrupted in the test
    assert len(steps) == 12


def test_a_half_is_answered_by_the_best_of_the_other() -> None:
    halves = [np.sort(half) for half in np.array_split(np.random.default_rng(5).permutation(7), 2)]
    right = np.zeros((3, 7))
    right[1, halves[0]] = 1  # best on the first half, wrong on the second
    right[2, halves[1][:2]] = 1  # best on the second
    right[2, halves[0][0]] = 1
    found = cross_chosen(right, seed=5)
    assert found[halves[0]].tolist() == right[2, halves[0]].tolist()
    assert found[halves[1]].tolist() == [0, 0, 0]


def test_settings_that_train_nothing_are_refused() -> None:
    with pytest.raises(FovealError, match="num_steps=0"):
        LinearSettings(num_steps=0)
    with pytest.raises(FovealError, match="batch_size=0"):
        LinearSettings(batch_size=0)
    assert LinearSettings().protocol == "linear"
    assert LinearSettings(num_steps=100).protocol == "linear, 100 steps of 128"


def test_further_tests_are_of_the_classifier_that_is_best_on_the_first(
    model: Model, sets: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    train, test = sets
    for number, name in ((2, "blue"), (0, "red")):  # one is called like the other
        folder = tmp_path / "numbered" / str(number)
        folder.mkdir(parents=True)
        for path in (test.root / name).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    labels = [[0], [], [0, 1]] * 3  # blue, green and red of 0.png, of 1.png and of 2.png
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    others = [
        open_other(f"{name}={tmp_path / source}", *sets)
        for name, source in (("numbered", "numbered"), ("again", "labels.json"))
    ]
    assert others[0].classes is not None
    assert others[0].classes.tolist() == [0, 2]
    rows = run(model, train, test, settings=_SETTINGS, others=others)
    assert [[(one.metric, one.value) for one in found] for found in rows[1:]] == [
        [("top-1", 0.0)],
        [("top-1", 50.0)],  # blue is right, green does not count, red is neither blue nor green
    ]


def test_a_class_that_is_not_asked_for_is_not_answered(model: Model, sets: tuple[ImageSet, ImageSet]) -> None:
    grid = Grid(model, num_classes=3, settings=_SETTINGS)
    for part in grid.parts.values():
        part.weight.zero_()
        part.bias.copy_(torch.tensor([0.0, 2.0, 1.0]))
    every, some = (grid.answer(sets[1], batch_size=4, only=only) for only in (None, torch.tensor([0, 2])))
    assert every.classes.unique(dim=1).squeeze(1).tolist() == [[1, 2, 0]] * 8
    assert some.classes.unique(dim=1).squeeze(1).tolist() == [[2, 0]] * 8


@pytest.mark.parametrize(
    ("text", "content", "message"),
    [
        ("x", "", "--also x; write NAME=FOLDER or NAME=labels.json"),
        ("x=labels.json", "{}", "holds no list; it must have one list of class numbers for each of 9 images"),
        ("x=labels.json", "[[0]]", "holds 1 entries; it must have"),
        (
            "x=labels.json",
            "[[0], [3], [], [], [], [], [], [], []]",
            r"entry 1, is \[3\]; write a list of class numbers",
        ),
        ("x=labels.json", "[[], [], [], [], [], [], [], [], []]", "has no label at all"),
        ("x=labels.json", "[[0]", "cannot be read as JSON"),
        ("x=absent.json", "", "cannot be read as JSON"),
        ("x=numbered", "", "has the class 3; the train set has 3, from 0"),
    ],
)
def test_further_tests_that_cannot_be_used_are_named(
    sets: tuple[ImageSet, ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    content: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.json").write_text(content)
    (tmp_path / "numbered" / "3").mkdir(parents=True)
    (tmp_path / "numbered" / "3" / "1.png").write_bytes(b"x")
    with pytest.raises(FovealError, match=message):
        open_other(text, *sets)
