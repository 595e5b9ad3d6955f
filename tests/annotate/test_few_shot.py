"""Heads of a few labels against scikit-learn's ridge regression, and the images that are offered."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from foveal.annotate import few_shot as module
from foveal.annotate.few_shot import FewShot
from foveal.errors import FovealError


def groups(counts: tuple[int, ...], width: int, *, seed: int = 0, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Features around one centre a class, in random order, and the classes."""
    generator = np.random.default_rng(seed)
    truth = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    centres = generator.normal(size=(len(counts), width))
    return (centres[truth] + spread * generator.normal(size=(len(truth), width))).astype(np.float32), truth


@pytest.mark.parametrize("width", [5, 41])  # fewer and more than the 23 labels
def test_answers_and_held_out_answers_are_those_of_ridge_regression(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PENALTIES", (0.03,))
    features, truth = groups((19, 20, 21), width, spread=1.5)
    rows = np.arange(0, 46, 2)
    found = FewShot(features).fit({int(row): "abc"[truth[row]] for row in rows})
    unit = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float64)
    centred = unit[rows] - unit[rows].mean(axis=0)
    penalty = 0.03 * np.linalg.eigvalsh(centred.T @ centred)[-1]
    onehot = np.eye(3)[truth[rows]]
    outputs = Ridge(alpha=penalty).fit(unit[rows], onehot).predict(unit)
    assert (found.answers == outputs.argmax(axis=1)).all()
    ahead = np.sort(outputs, axis=1)
    assert found.scores == pytest.approx(ahead[:, 2] - ahead[:, 1], abs=1e-4)
    for place in range(len(rows)):
        others = np.delete(np.arange(len(rows)), place)
        refit = Ridge(alpha=penalty).fit(unit[rows[others]], onehot[others])
        guess = refit.predict(unit[rows[place]][None]).argmax()
        assert found.right[place] == (guess == truth[rows[place]])
    assert 0 < found.right.sum() < len(rows)


def test_only_drawn_labels_measure_accuracy() -> None:
    features, truth = groups((60, 60), 7)
    labels = {row: "ab"[truth[row]] for row in range(100)}
    few_shot = FewShot(features)
    found = few_shot.fit(labels, drawn=range(60, 100))
    assert found.held_out.sum() == 40
    assert found.accuracy is not None
    assert found.accuracy.value == 100
    assert set(found.states) == {"unsure"}  # 40 are too few for 0.9
    assert "proposed" in few_shot.fit(labels).states
    assert few_shot.fit(labels, drawn=[]).accuracy is None


def test_labels_that_mean_nothing_are_never_proposed() -> None:
    features, _ = groups((100, 100), 7)
    names = np.random.default_rng(3).choice(["a", "b"], 200)
    found = FewShot(features).fit(dict(enumerate(names.tolist())))
    assert set(found.states) == {"unsure"}
    assert found.accuracy is not None
    assert 35 < found.accuracy.value < 65


def test_offered_images_cover_the_classes_sooner_than_drawn_ones() -> None:
    features, truth = groups((100, 4, 4, 4, 4), 16)
    few_shot = FewShot(features)
    labelled: list[int] = []
    drawn = []
    for _ in range(10):
        offer = few_shot.next_image(labelled)
        assert offer.row not in labelled
        labelled.append(offer.row)
        drawn.append(offer.drawn)
    assert [place for place, one in enumerate(drawn) if one] == [4, 9]
    assert set(truth[labelled]) == set(range(5))


def test_with_a_head_an_unsure_group_is_offered_before_a_sure_one() -> None:
    features, truth = groups((50, 50, 50), 9)
    few_shot = FewShot(features)
    known = {int(row): "ab"[truth[row]] for group in (0, 1) for row in np.flatnonzero(truth == group)[:30]}
    fit = few_shot.fit(known)
    assert truth[few_shot.next_image(list(known), fit).row] == 2


def test_offers_end_and_large_sets_go_on_beyond_their_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_OFFERED", 3)
    features, _ = groups((4, 4), 5)
    few_shot = FewShot(features)
    labelled: list[int] = []
    for _ in range(8):
        labelled.append(few_shot.next_image(labelled).row)
    assert sorted(labelled) == list(range(8))
    with pytest.raises(FovealError, match="all 8 images have a label"):
        few_shot.next_image(labelled)


def test_what_cannot_be_fitted_is_refused() -> None:
    few_shot = FewShot(np.eye(3, dtype=np.float32))
    with pytest.raises(FovealError, match="2 labels of 1 class; a head needs labels of two classes"):
        few_shot.fit({0: "a", 1: "a"})
    with pytest.raises(FovealError, match="labels of rows 0 to 3; there are 0 to 2"):
        few_shot.fit({0: "a", 3: "b"})
    with pytest.raises(FovealError, match=r"features of shape \(0, 3\)"):
        FewShot(np.empty((0, 3)))
    with pytest.raises(FovealError, match="NaN"):
        FewShot(np.full((2, 2), np.nan))


def test_many_noisy_classes_are_not_shrunk_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The penalty that is chosen answers almost as well as the best of all, where classes lie in weak directions."""
    features, truth = groups((10,) * 50, 64, spread=1.2)
    features *= np.linspace(1, 0.1, 64, dtype=np.float32) ** 2
    few_shot, labels = FewShot(features), {row: str(truth[row]) for row in range(250)}

    def accuracy() -> float:
        found = few_shot.fit(labels)
        return float(np.mean([found.classes[found.answers[row]] == str(truth[row]) for row in range(250, 500)]))

    chosen, best = accuracy(), 0.0
    for penalty in module._PENALTIES:
        monkeypatch.setattr(module, "_PENALTIES", (penalty,))
        best = max(best, accuracy())
    assert chosen > 0.95 * best > 0.5


def test_closed_images_are_not_offered_and_do_not_count_as_labelled() -> None:
    features, truth = groups((12, 4), 5)
    few_shot = FewShot(features)
    first = few_shot.next_image([]).row
    closed = [first]
    while len(closed) < 16:
        offer = few_shot.next_image([], closed=closed)
        assert offer.row not in closed
        closed.append(offer.row)
    with pytest.raises(FovealError, match="all 16 images have a label or are closed"):
        few_shot.next_image([], closed=closed)
    # A skipped image teaches nothing: its neighbours are as welcome as before.
    assert truth[few_shot.next_image([], closed=[first]).row] == truth[first]
