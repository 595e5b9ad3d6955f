from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from foveal.errors import ImageSetError
from foveal.evaluate import classification
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet
from foveal.tasks.fit_classes import fit_classifier
from foveal.tasks.kinds import head_card
from foveal.tasks.protocols import fit_settings


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")  # which is the case that we test
def test_measures_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 50)
    probabilities = generator.dirichlet(np.ones(7), 50) + 0.2 * np.eye(7)[labels]
    measures, confusion = classification.measures_of(probabilities, labels, name="linear")
    assert [one.metric for one in measures] == ["linear top-1", "linear top-5", "linear mean over classes"]
    found = [one.value / 100 for one in measures]
    every = np.arange(7)
    assert found[0] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=1, labels=every))
    assert found[1] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=5, labels=every))
    assert found[2] == pytest.approx(balanced_accuracy_score(labels, probabilities.argmax(axis=1)))
    np.testing.assert_array_equal(confusion, confusion_matrix(labels, probabilities.argmax(axis=1), labels=every))
    assert all(one.low <= one.value <= one.high for one in measures)


def test_few_classes_have_no_top_5() -> None:
    measures, _ = classification.measures_of(np.eye(3), np.array([0, 1, 1]))
    assert [(one.metric, round(one.value, 2)) for one in measures] == [("top-1", 66.67), ("mean over classes", 75.0)]


def test_of_equal_classes_the_first_is_answered() -> None:
    measures, confusion = classification.measures_of(np.full((2, 6), 1 / 6), np.array([0, 5]))
    assert [one.value for one in measures] == [50, 50, 50]  # top-5 holds classes 0 to 4
    assert confusion[:, 0].tolist() == [1, 0, 0, 0, 0, 1]


def test_head_is_measured_on_images_that_can_be_read(model: Model, colours: Path) -> None:
    card = head_card(model, "classification", "linear", classes=["blue", "green", "red"])
    settings = fit_settings("classification", steps=40, batch_size=8, learning_rate=3e-3)
    predictor = fit_classifier(model, card, ImageSet.open(colours / "train"), settings).head.attach(model)
    (colours / "test" / "red" / "1.png").write_bytes(b"no picture")
    measures, confusion = classification.run(predictor, ImageSet.open(colours / "test"))
    np.testing.assert_array_equal(confusion, np.diag([3, 3, 2]))
    assert measures[0].value == 100
    (colours / "test" / "red").rename(colours / "test" / "pink")
    with pytest.raises(
        ImageSetError, match=r"1 labels that the head does not know, first pink; it knows 3, e\.g\. blue"
    ):
        classification.run(predictor, ImageSet.open(colours / "test"))
