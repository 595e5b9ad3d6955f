from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from foveal.errors import FovealError
from foveal.evaluate import logistic
from foveal.evaluate.few_shot import FewShot
from foveal.evaluate.labelled import Labelled
from foveal.evaluate.softmax_regression import Fit, fit_path

CS = (1e-4, 1e-2, 1.0, 100.0)


def _samples(num: int, num_classes: int, *, seed: int = 0, width: int = 7) -> Labelled:
    """Classes that overlap, in features of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % num_classes
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(99))
    features = (centres[labels] + torch.randn(num, width, generator=generator)) * torch.logspace(-2, 1, width)
    return Labelled(features + 3, labels)


def _sklearn(train: Labelled, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=2000, tol=1e-8, solver="newton-cg").fit(
        train.features.double().numpy(), train.labels.numpy()
    )


def _objective(weight: np.ndarray, bias: np.ndarray, train: Labelled, c: float) -> float:
    """The objective by its definition."""
    logits = train.features.double().numpy() @ weight.T + bias
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), train.labels.numpy()] - np.log(np.exp(logits).sum(axis=1))
    return float(-chosen.sum() + (weight**2).sum() / (2 * c))


@pytest.mark.parametrize("num_classes", [2, 3, 6])
def test_optimum_is_that_of_scikit_learn(num_classes: int) -> None:
    train = _samples(90, num_classes)
    for fit, c in zip(fit_path(*train, CS), CS, strict=True):
        theirs = _sklearn(train, c)
        expected = _objective(theirs.coef_, theirs.intercept_, train, c)
        assert fit.c == c
        assert fit.objective == pytest.approx(expected, rel=1e-6)
        assert _objective(fit.weight.numpy(), fit.bias.numpy(), train, c) == pytest.approx(fit.objective, rel=1e-9)
        probabilities = fit.scores(train.features).softmax(dim=1).numpy()
        np.testing.assert_allclose(probabilities, theirs.predict_proba(train.features.double().numpy()), atol=2e-3)


def test_separable_classes_and_a_weak_penalty_are_fitted_no_worse_than_by_scikit_learn() -> None:
    train = _samples(40, 4, width=50)
    (fit,) = fit_path(*train, [1e5])
    theirs = LogisticRegression(C=1e5, max_iter=1000, tol=1e-12).fit(train.features.double().numpy(), train.labels)
    assert fit.objective <= _objective(theirs.coef_, theirs.intercept_, train, 1e5) * (1 + 1e-6)
    assert torch.equal(fit.predict(train.features), train.labels)


def test_same_c_is_chosen_as_by_scikit_learn() -> None:
    train, test = _samples(200, 4), _samples(100, 4, seed=1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    held_out, kept = order[:20], order[20:]
    accuracies = []
    for c in CS:
        theirs = _sklearn(Labelled(train.features[kept], train.labels[kept]), c)
        accuracies.append(theirs.score(train.features[held_out].double().numpy(), train.labels[held_out].numpy()))
    best = CS[int(np.argmax(accuracies))]
    assert best != CS[0]
    seen: list[tuple[float, float]] = []
    found = logistic.score(train, test, cs=CS, fitted=lambda fit, accuracy: seen.append((fit.c, accuracy)))
    assert seen == [(c, pytest.approx(100 * accuracy)) for c, accuracy in zip(CS, accuracies, strict=True)]
    assert [(one.metric, one.unit) for one in found] == [("top-1", "%"), ("C", "")]
    assert found[1].value == best
    expected = 100 * _sklearn(train, best).score(test.features.double().numpy(), test.labels.numpy())
    assert found[0].value == pytest.approx(expected)


def test_classes_that_the_choice_does_not_see_are_fitted_in_the_end() -> None:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    train = _samples(30, 5)
    labels = train.labels.clone()
    labels[order[0]] = 5  # held out, and the only one
    fit = logistic.fit_all(
        Labelled(train.features, labels), logistic.choose(Labelled(train.features, labels), cs=[1.0])
    )
    assert fit.classes.tolist() == [0, 1, 2, 3, 4, 5]
    found = logistic.score(Labelled(train.features, labels), train, cs=[1.0])
    assert [one.metric for one in found] == ["top-1", "top-5", "C"]


def test_an_interrupted_sweep_goes_on_to_the_bit(tmp_path: Path) -> None:
    train, state, seen = _samples(60, 4), tmp_path / "sweep.safetensors", []

    def fitted(fit: Fit, accuracy: float) -> None:
        seen.append((fit.c, fit.objective, accuracy))
        if len(seen) == 2:
            raise KeyboardInterrupt

    whole = logistic.choose(train, cs=CS, fitted=lambda fit, accuracy: seen.append((fit.c, fit.objective, accuracy)))
    expected = seen.copy()
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        logistic.choose(train, cs=CS, fitted=fitted, state=state)
    found = logistic.choose(train, cs=CS, fitted=fitted, state=state)
    assert seen == expected
    assert [torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(found, whole, strict=True)] == [
        True
    ] * 6
    again = logistic.choose(train, cs=CS, fitted=fitted, state=state)  # interrupted after the last
    assert torch.equal(again.weight, whole.weight)
    assert len(seen) == 4
    with pytest.raises(FovealError, match="is the state of a sweep with another model, data or settings"):
        logistic.choose(_samples(60, 4, seed=1), cs=CS, state=state)


def test_few_shot_fits_each_draw() -> None:
    train, test = _samples(60, 3), _samples(50, 3, seed=1)
    seen: list[float] = []
    found = logistic.score(
        train, test, cs=CS, few_shot=FewShot(8, 3), seed=4, fitted=lambda fit, accuracy: seen.append(fit.c)
    )
    assert [one.metric for one in found] == ["top-1, 8 per class, mean of 3", "top-1, 8 per class, deviation"]
    assert seen == [*CS] * 3
    singles = []
    for number in range(3):
        generator = np.random.default_rng((4, number))
        members = [generator.choice(np.flatnonzero(train.labels.numpy() == c), 8, replace=False) for c in range(3)]
        index = np.sort(np.concatenate(members))
        part = Labelled(train.features[index], train.labels[index])
        theirs = _sklearn(part, logistic.choose(part, cs=CS).c)
        singles.append(100 * theirs.score(test.features.double().numpy(), test.labels.numpy()))
    assert found[0].value == pytest.approx(np.mean(singles))
    assert found[1].value == pytest.approx(np.std(singles, ddof=1))
    with pytest.raises(FovealError, match="n_per_class=1 leaves no image of a class to choose with"):
        logistic.score(train, test, few_shot=FewShot(1))


def test_a_warm_start_ends_where_a_cold_one_does() -> None:
    train = _samples(60, 3)
    _, warm = fit_path(*train, [0.5, 1.0])
    (cold,) = fit_path(*train, [1.0])
    (again,) = fit_path(*train, [1.0], start=warm)
    assert warm.objective == pytest.approx(cold.objective, rel=1e-7)
    assert again.objective <= warm.objective
    assert again.steps < cold.steps


def _fit(features: Tensor, labels: Tensor, c: float) -> list[Fit]:
    return list(fit_path(features, labels, [c]))


def test_what_cannot_be_fitted_is_said() -> None:
    features, labels = _samples(20, 2)
    with pytest.raises(FovealError, match="20 samples of 1 class"):
        _fit(features, torch.zeros(20, dtype=torch.int64), 1.0)
    with pytest.raises(FovealError, match="C=0; give values above 0"):
        _fit(features, labels, 0.0)
    with pytest.raises(FovealError, match="NaN or infinity"):
        _fit(features * torch.inf, labels, 1.0)
    with pytest.raises(FovealError, match="9 readable train images"):
        logistic.choose(Labelled(features[:9], labels[:9]))
