from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.evaluate.few_shot import FewShot
from foveal.evaluate.linear_cached import run, score, train_grid
from foveal.evaluate.linear_grid import Inputs, inputs_of
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet


def _samples(num: int, *, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(num) % 5
    return torch.eye(5, width)[labels] + 0.3 * torch.randn(
        num, width, generator=torch.Generator().manual_seed(seed)
    ), labels


def test_each_classifier_is_trained_as_by_sgd_with_autograd() -> None:
    features, labels = _samples(20)
    rates = (0.01, 0.5)
    trained = train_grid(features, labels, num_classes=5, num_steps=7, learning_rates=rates, seed=3)
    for number, rate in enumerate(rates):
        start = 0.01 * torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
        linear = nn.Linear(6, 5)
        linear.weight.data.copy_(start)
        linear.bias.data.zero_()
        optimizer = torch.optim.SGD(linear.parameters(), lr=rate * 20 / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
        for _ in range(7):  # a batch is the whole set: its order does not matter
            optimizer.zero_grad()
            F.cross_entropy(linear(features), labels).backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(trained.weight[number], linear.weight.data, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(trained.bias[number], linear.bias.data, atol=1e-6, rtol=1e-5)


def test_inputs_are_last_class_tokens_and_the_last_mean() -> None:
    arrays = {
        f"{token}.layer{n}": torch.full((2, 3), 10.0 * m + n) for m, token in enumerate(("cls", "mean")) for n in (4, 5)
    }
    found = inputs_of(arrays, [4, 5])
    assert {key: value[0, ::3].tolist() for key, value in found.items()} == {
        Inputs(1, False): [5],
        Inputs(1, True): [5, 15],
        Inputs(2, False): [4, 5],
        Inputs(2, True): [4, 5, 15],
    }


def test_the_inputs_that_hold_the_classes_are_chosen() -> None:
    features, labels = _samples(100)
    test_features, test_labels = _samples(30, seed=1)
    noise, useless, good = torch.randn(100, 6), Inputs(1, False), Inputs(4, True)
    steps: list[tuple[int, int]] = []
    found = score(
        {useless: noise, good: features},
        labels,
        {useless: noise[:30], good: test_features},
        test_labels,
        num_classes=5,
        num_steps=40,
        learning_rates=(1e-6, 1.0),
        trained=lambda done, total: steps.append((done, total)),
    )
    values = {one.metric: one.value for one in found}
    assert values["top-1"] > 80
    assert values["top-5"] == 100
    assert (values["learning rate"], values["blocks"], values["mean patch token"]) == (1.0, 4, 1)
    assert steps == [(number + 1, 80) for number in range(80)]
    with pytest.raises(FovealError, match="9 readable train images"):
        score({good: features[:9]}, labels[:9], {good: features}, labels, num_classes=5)
    with pytest.raises(FovealError, match="num_steps=0"):
        score({good: features}, labels, {good: features}, labels, num_classes=5, num_steps=0)


def test_colours_are_told_apart(model: Model, colours: Path) -> None:
    found = run(
        model, ImageSet.open(colours / "train"), ImageSet.open(colours / "test"), num_steps=60, learning_rates=[10, 100]
    )
    assert found[0].metric == "top-1"
    assert found[0].value == 100


def test_few_shot_is_the_mean_over_classifiers_of_each_draw() -> None:
    (features, labels), (test_features, test_labels) = _samples(60), _samples(40, seed=1)
    key, steps = Inputs(1, False), list[tuple[int, int]]()
    settings = {"num_classes": 5, "num_steps": 20, "learning_rates": (0.3, 3.0), "seed": 2}
    found = score(
        {key: features},
        labels,
        {key: test_features},
        test_labels,
        **settings,  # type: ignore[arg-type]
        few_shot=FewShot(4, 2),
        trained=lambda *step: steps.append(step),
    )
    singles = []
    for number in range(2):
        generator = np.random.default_rng((2, number))
        drawn = [generator.choice(np.flatnonzero(labels.numpy() == c), 4, replace=False) for c in range(5)]
        index = torch.from_numpy(np.sort(np.concatenate(drawn)))
        rows = score({key: features[index]}, labels[index], {key: test_features}, test_labels, **settings)  # type: ignore[arg-type]
        singles.append([one.value for one in rows[:2]])
    assert [one.metric for one in found[::2]] == ["top-1, 4 per class, mean of 2", "top-5, 4 per class, mean of 2"]
    assert [one.value for one in found[::2]] == pytest.approx(np.mean(singles, axis=0))
    assert steps == [(number + 1, 40) for number in range(40)]
    with pytest.raises(FovealError, match="n_per_class=1 leaves"):
        score({key: features}, labels, {key: features}, labels, num_classes=5, few_shot=FewShot(1))
