import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.layouts.revisited import is_revisited, open_revisited
from foveal.evaluate.results import Measure
from foveal.evaluate.retrieval import (
    Grouped,
    Truth,
    global_average_precision,
    rank,
    run_groups,
    run_revisited,
    score_groups,
    score_revisited,
)
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet


def _values(measures: list[Measure]) -> dict[str, float]:
    return {measure.metric: measure.value for measure in measures}


def test_revisited_numbers_are_those_of_the_reference(golden: Path) -> None:
    reference = json.loads((golden / "retrieval.json").read_text())
    rankings = list(np.array(reference["ranks"]).T)
    truths = [Truth(**{k: np.array(v, dtype=np.int64) for k, v in g.items()}) for g in reference["ground_truth"]]
    found = _values(score_revisited(rankings, truths))
    for setting, expected in reference["results"].items():
        assert found[f"mAP {setting}"] == pytest.approx(100 * expected["map"], abs=1e-9)
        precisions = [found[f"mP@{k} {setting}"] for k in (1, 5, 10)]
        assert precisions == pytest.approx([100 * v for v in expected["mean_precision_at_1_5_10"]], abs=1e-9)


def test_settings_without_relevant_images_are_left_out() -> None:
    none = np.empty(0, np.int64)
    truth = Truth(easy=none, hard=np.array([1]), junk=np.array([0]))
    found = _values(score_revisited([np.arange(3)], [truth], ks=[1]))
    assert found == {"mAP medium": 100, "mP@1 medium": 100, "mAP hard": 100, "mP@1 hard": 100}
    with pytest.raises(FovealError, match="no query has a relevant image"):
        score_revisited([np.arange(3)], [Truth(none, none, none)])
    with pytest.raises(FovealError, match="2 rankings for 1 queries"):
        score_revisited([np.arange(3)] * 2, [truth])


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Two places, red and blue; the query pictures show theirs in the box, and the other one around it."""
    colours = {"red": (230, 20, 30), "blue": (20, 30, 220)}
    (tmp_path / "jpg").mkdir()
    generator = np.random.default_rng(0)

    def save(name: str, colour: str, around: str | None = None) -> None:
        pixels = np.full((60, 80, 3), colours[around or colour])
        pixels[20:40, 30:50] = colours[colour]
        noisy = np.clip(pixels + generator.integers(-3, 3, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(tmp_path / "jpg" / f"{name}.jpg", quality=100, subsampling=0)

    for number in range(6):
        save(f"image_{number}", "red" if number < 3 else "blue")
    save("query_red", "red", "blue")
    save("query_blue", "blue", "red")
    gnd = [
        {"bbx": [30.0, 20.0, 50.0, 40.0], "easy": np.array([0, 1]), "hard": np.array([2]), "junk": np.array([4])},
        {"bbx": [30.0, 20.0, 50.0, 40.0], "easy": [3], "hard": [5], "junk": np.empty(0, np.int64)},
    ]
    content = {
        "gnd": gnd,
        "imlist": [f"image_{number}" for number in range(6)],
        "qimlist": ["query_red", "query_blue"],
    }
    (tmp_path / "gnd_rplaces.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


def _edit(places: Path, **changes: object) -> None:
    """Write the ground truth as JSON instead, with some of it changed."""
    content = pickle.loads((places / "gnd_rplaces.pkl").read_bytes())
    for entry in content["gnd"]:
        entry.update({level: np.asarray(entry[level]).tolist() for level in ("easy", "hard", "junk")})
    (places / "gnd_rplaces.pkl").rename(places / "old.pkl")
    (places / "gnd_rplaces.json").write_text(json.dumps({**content, **changes}))


def test_the_box_of_a_query_is_what_is_searched_for(model: Model, places: Path) -> None:
    data = open_revisited(places)
    cropped = _values(run_revisited(model, data, ks=[1]))
    whole = _values(run_revisited(model, data, ks=[1], crop_queries=False))
    assert cropped["mAP easy"] == cropped["mP@1 hard"] == 100
    assert whole["mAP medium"] < 70


def test_the_json_form_is_the_pickle_form(places: Path) -> None:
    assert is_revisited(places)
    assert not is_revisited(places / "jpg")
    first = open_revisited(places)
    _edit(places)
    second = open_revisited(places)
    assert first.hash == second.hash
    assert first.name == places.name
    assert [t.easy.tolist() for t in first.truths] == [t.easy.tolist() for t in second.truths] == [[0, 1], [3]]


def test_another_truth_is_another_hash(places: Path) -> None:
    data = open_revisited(places)
    other = replace(data, truths=[data.truths[0], replace(data.truths[1], junk=np.array([4]))])
    assert other.hash != data.hash


_ENTRY = {"bbx": [0, 0, 9, 9], "easy": [0], "hard": [1], "junk": [2]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gnd": 5}, "holds the lists gnd, imlist, qimlist"),
        ({"gnd": [_ENTRY]}, "gnd has 1 entries for 2 queries"),
        ({"gnd": [_ENTRY, {"ok": [1], "junk": [2]}]}, "query query_blue holds ok, junk; it must hold bbx, easy"),
        ({"gnd": [_ENTRY, {**_ENTRY, "hard": [6]}]}, "query_blue: hard must list numbers from 0 to 5"),
        ({"gnd": [_ENTRY, {**_ENTRY, "hard": [0]}]}, "query_blue lists an image twice"),
        ({"gnd": [_ENTRY, {**_ENTRY, "bbx": [5, 0, 5, 9]}]}, "is empty; it must be left, top"),
        ({"gnd": [_ENTRY, {**_ENTRY, "bbx": [5, 0]}]}, "bbx must be left, top, right, bottom"),
        ({"qimlist": ["image_0", "query_red"]}, "1 queries are in the database as well, first image_0"),
        ({"imlist": ["../x"]}, "imlist must list file names without folder"),
    ],
)
def test_a_ground_truth_of_another_form_is_refused(places: Path, changes: dict[str, object], message: str) -> None:
    _edit(places, **changes)
    with pytest.raises(FovealError, match=message):
        open_revisited(places)


def test_missing_pictures_and_ground_truths_are_named(places: Path) -> None:
    (places / "jpg" / "image_2.jpg").unlink()
    with pytest.raises(ImageSetError, match=r"lacks 1 of 6 files: jpg/image_2.jpg"):
        open_revisited(places)
    (places / "gnd_rplaces.pkl").unlink()
    with pytest.raises(FovealError, match=r"holds 0 ground-truth files gnd_\*.pkl"):
        open_revisited(places)


def test_a_query_that_cannot_be_read_is_named_and_a_database_image_is_not_found(model: Model, places: Path) -> None:
    (places / "jpg" / "image_3.jpg").write_bytes(b"damaged")
    found = _values(run_revisited(model, open_revisited(places), ks=[1]))
    assert found["mAP easy"] == 50  # all of the first query, nothing of the second
    (places / "jpg" / "query_red.jpg").write_bytes(b"damaged")
    with pytest.raises(FovealError, match=r"jpg/query_red\.jpg"):
        run_revisited(model, open_revisited(places))


def test_groups_are_scored_as_by_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(29) % 4
    features = torch.randn(29, 5, generator=generator) + 2 * torch.eye(5)[groups]
    queries = Grouped(features[:11], groups[:11])
    database = Grouped(features[11:], groups[11:])
    cosines = torch.nn.functional.cosine_similarity(features[:11, None], features[None, 11:], dim=2).numpy()
    right = (groups[:11, None] == groups[None, 11:]).numpy()
    found = _values(score_groups(queries, database, ks=[1, 3]))
    assert found["mAP"] == pytest.approx(100 * np.mean(list(map(average_precision_score, right, cosines))))
    first_three = np.take_along_axis(right, np.argsort(-cosines, axis=1)[:, :3], axis=1)
    assert found["recall@1"] == pytest.approx(100 * first_three[:, 0].mean())
    assert found["recall@3"] == pytest.approx(100 * first_three.any(axis=1).mean())
    best = cosines.argmax(axis=1)
    hits = right[np.arange(11), best]
    expected = average_precision_score(hits, cosines.max(axis=1)) * hits.sum() / 11
    assert found["GAP"] == pytest.approx(100 * expected)


def test_a_set_searched_by_itself_leaves_each_image_out() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.5, 0.6]])
    found = _values(score_groups(Grouped(features, torch.tensor([0, 0, 1, 1, 2])), ks=[1]))
    # The fifth image has nobody to find: no part of mAP, and a wrong answer in GAP, less sure than the others.
    assert found == {"mAP": 100.0, "recall@1": 100.0, "GAP": 100.0}


def test_gap_by_hand() -> None:
    confidences = np.array([0.2, 0.9, 0.5])
    assert global_average_precision(confidences, np.array([True, True, False]), 3) == pytest.approx((1 + 2 / 3) / 3)


def test_ranking_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, database = torch.randn(7, 3, generator=generator), torch.randn(11, 3, generator=generator)
    whole = [ranking.tolist() for ranking, _ in rank(queries, database)]
    monkeypatch.setattr("foveal.evaluate.retrieval._SIMILARITIES_AT_A_TIME", 22)
    assert [ranking.tolist() for ranking, _ in rank(queries, database)] == whole
    assert whole == (-torch.nn.functional.cosine_similarity(queries[:, None], database[None], dim=2)).argsort().tolist()


def test_groups_of_pictures_find_each_other(model: Model, colours: Path) -> None:
    train, test = ImageSet.open(colours / "train"), ImageSet.open(colours / "test")
    assert _values(run_groups(model, test, train, ks=[1])) == {"mAP": 100, "recall@1": 100, "GAP": 100}
    assert _values(run_groups(model, test, ks=[2])) == {"mAP": 100, "recall@2": 100, "GAP": 100}


def test_groups_are_checked_before_any_work(model: Model, colours: Path) -> None:
    train, test = ImageSet.open(colours / "train"), ImageSet.open(colours / "test")
    with pytest.raises(ImageSetError, match="query set has images without a group"):
        run_groups(model, ImageSet.open(colours / "test" / "red"), train)
    with pytest.raises(ImageSetError, match="21 of 21"):
        run_groups(model, train, train)
    with pytest.raises(ImageSetError, match="group of no query has a second image"):
        run_groups(model, test.subset([0, 3, 6]))
    with pytest.raises(ImageSetError, match="group of no query is in the database"):
        run_groups(model, test.subset([0, 1]), train.subset([7, 20]))
    with pytest.raises(FovealError, match="k=0"):
        run_groups(model, test, train, ks=[0])
