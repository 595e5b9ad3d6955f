"""Retrieval with frozen features: the revisited Oxford and Paris protocol, and any set of images in groups.

Shapes: Q queries, N database images, D width.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.ranking import mean_precision, precision_at, relevant_places, trapezoid_precision
from foveal.evaluate.results import Measure, measured, measured_mean
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.labels import check_apart
from foveal.features.neighbours import top_k
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import Mode, Size

KS = (1, 5, 10)
_SIMILARITIES_AT_A_TIME = 1 << 23


@dataclass(frozen=True)
class Truth:
    """What a query of the revisited protocol should find: numbers of database images, each (n,) int64.

    Attributes:
        easy: clearly the same place.
        hard: the same place, hard to see.
        junk: too little of it to count either way.
    """

    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray

    def split(self, setting: str) -> tuple[np.ndarray, np.ndarray]:
        """Return what is relevant and what is junk in "easy", "medium" or "hard" (arXiv 1803.11285, section 3)."""
        if setting == "medium":
            return np.concatenate([self.easy, self.hard]), self.junk
        relevant, left_out = (self.easy, self.hard) if setting == "easy" else (self.hard, self.easy)
        return relevant, np.concatenate([self.junk, left_out])


SETTINGS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Revisited:
    """A data set of the revisited protocol.

    Attributes:
        name: "revisited Oxford", "revisited Paris", or that of the folder.
        queries: Q images, none of which is in the database.
        database: N images.
        boxes: the part of each query that shows the place: left, top, right, bottom in pixels.
        truths: what each query should find.
    """

    name: str
    queries: ImageSet
    database: ImageSet
    boxes: list[tuple[float, float, float, float]]
    truths: list[Truth]

    @property
    def hash(self) -> str:
        """The sha256 over both sets, the boxes and the truths."""
        truths = [[numbers.tolist() for numbers in (t.easy, t.hard, t.junk)] for t in self.truths]
        text = json.dumps([self.queries.hash, self.database.hash, self.boxes, truths])
        return hashlib.sha256(text.encode()).hexdigest()


def run_revisited(
    model: Model,
    data: Revisited,
    *,
    crop_queries: bool = True,
    size: Size | None = None,
    fit: Mode = "crop",
    ks: Sequence[int] = KS,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measure]:
    """Evaluate a model on revisited Oxford or Paris: class token after the final norm, cosine, no re-ranking.

    Args:
        model: a loaded model.
        data: see `foveal.evaluate.layouts.revisited.open_revisited`.
        crop_queries: show the model only the box of each query, as the protocol has it; the other way is common too.
        size: pixels; see `Model.extract`. The published numbers of DINOv2 do not say theirs.
        fit: see `Model.extract`.
        ks: of the precision among the first k.
        batch_size: images at a time.
        seed: of the intervals.
        progress: called with (images done, images in all) of the database.

    Returns:
        For easy, medium and hard the mAP and the mean precision at each k in percent; queries without a relevant image
        in a setting do not count there. Database images that cannot be read are never found.

    Raises:
        BadImageError: a query that cannot be read.
        ImageSetError: no database image can be read.

    Source: arXiv 1803.11285, and arXiv 2304.07193, section 7.3.
    """
    _check_ks(ks)
    model = model.settle(data.database, size=size, fit=fit)
    queries = torch.cat(
        [model.extract(picture, size=size, fit=fit).cls for picture in _query_pictures(data, crop_queries)]
    )
    found = model.extract_set(data.database, size=size, fit=fit, batch_size=batch_size, progress=progress)
    numbers = found.indices.numpy()
    rankings = [numbers[ranking] for ranking, _ in rank(queries, found.arrays["cls"])]
    return score_revisited(rankings, data.truths, ks=ks, seed=seed)


def score_revisited(
    rankings: Sequence[np.ndarray], truths: Sequence[Truth], *, ks: Sequence[int] = KS, seed: int = 0
) -> list[Measure]:
    """Evaluate rankings, (N,) int64 for each query, by the revisited protocol; result as of `run_revisited`.

    Raises:
        FovealError: rankings and truths that do not fit, or a setting without any relevant image.
    """
    if len(rankings) != len(truths):
        raise FovealError(f"{len(rankings)} rankings for {len(truths)} queries; give one for each")
    measures = []
    for setting in SETTINGS:
        places, counts = [], []
        for ranking, truth in zip(rankings, truths, strict=True):
            relevant, junk = truth.split(setting)
            if len(relevant):
                places.append(relevant_places(ranking, relevant, junk=junk))
                counts.append(len(relevant))
        if not places:
            continue
        precisions = [100 * trapezoid_precision(*query) for query in zip(places, counts, strict=True)]
        measures.append(measured_mean(f"mAP {setting}", precisions, unit="%", seed=seed))
        for k in ks:
            shares = [100 * precision_at(query, k) for query in places]
            measures.append(measured_mean(f"mP@{k} {setting}", shares, unit="%", seed=seed))
    if not measures:
        raise FovealError("no query has a relevant image; check the ground truth")
    return measures


class Grouped(NamedTuple):
    """Features (N, D) and the group of each, (N,) int64."""

    features: Tensor
    groups: Tensor


def run_groups(
    model: Model,
    queries: ImageSet,
    database: ImageSet | None = None,
    *,
    size: Size | None = None,
    fit: Mode = "crop",
    ks: Sequence[int] = KS,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measure]:
    """Evaluate how well images find those of their group (label): class token after the final norm, cosine.

    Args:
        model: a loaded model.
        queries: labelled images.
        database: labelled images that are searched; None searches the queries, each without itself.
        size: see `Model.extract`.
        fit: see `Model.extract`.
        ks: of recall@k.
        batch_size: images at a time.
        seed: of the intervals.
        progress: called with (images done, images in all), first of the queries, then of the database.

    Returns:
        As of `score_groups`.

    Raises:
        ImageSetError: labels missing, images in both sets, or no query whose group is in the database.
        FovealError: a k below 1.
    """
    _check_ks(ks)
    numbers: dict[str, int] = {}
    query_groups = _group_numbers(queries, "query", numbers)
    database_groups = query_groups if database is None else _group_numbers(database, "database", numbers)
    if database is not None:
        check_apart(database, queries)
    _check_shared(query_groups, database_groups, alone=database is None)

    def extract(images: ImageSet, groups: Tensor) -> Grouped:
        found = model.extract_set(images, size=size, fit=fit, batch_size=batch_size, progress=progress)
        return Grouped(found.arrays["cls"], groups[found.indices])

    searched = None if database is None else extract(database, database_groups)
    return score_groups(extract(queries, query_groups), searched, ks=ks, seed=seed)


def score_groups(
    queries: Grouped, database: Grouped | None = None, *, ks: Sequence[int] = KS, seed: int = 0
) -> list[Measure]:
    """Evaluate features that are already extracted.

    Returns:
        In percent: mAP (the mean of the precisions at each image of the group) and recall@k (the share of queries with
        an image of their group among the first k), over the queries whose group is in the database; and GAP, the
        average precision of the answers of all queries, each that of its nearest image, ordered by their cosine
        (arXiv 2202.01747, section 4, with one neighbour and nothing fitted). Other queries cost GAP what a wrong
        answer costs.

    Raises:
        FovealError: no query has a group that is in the database.
    """
    searched = queries if database is None else database
    groups = searched.groups.numpy()
    precisions, firsts, confidences, hits = [], [], [], []
    for number, (ranking, similarity) in enumerate(rank(queries.features, searched.features)):
        own = -1 if database is not None else number
        kept = ranking[ranking != own]
        right = groups[kept] == int(queries.groups[number])
        places = np.flatnonzero(right)
        confidences.append(float(similarity[ranking != own][0]) if len(kept) else -1.0)
        hits.append((bool(len(kept)) and bool(right[0]), bool(len(places))))
        if len(places):
            precisions.append(100 * mean_precision(places, len(places)))
            firsts.append(int(places[0]))
    if not precisions:
        raise FovealError("no query has an image of its group to find; check the groups")
    measures = [measured_mean("mAP", precisions, unit="%", seed=seed)]
    for k in ks:
        measures.append(measured_mean(f"recall@{k}", [100.0 * (first < k) for first in firsts], unit="%", seed=seed))
    return [*measures, _measured_gap(np.array(confidences), np.array(hits), seed)]


def global_average_precision(confidences: np.ndarray, right: np.ndarray, num_answerable: int) -> float:
    """Return the average precision of one answer a query, all ordered by falling confidence (arXiv 2202.01747).

    Args:
        confidences: (Q,) float.
        right: (Q,) bool.
        num_answerable: queries with a right answer.
    """
    places = np.flatnonzero(right[np.argsort(-confidences, kind="stable")])
    return mean_precision(places, num_answerable) if num_answerable else 0.0


def _measured_gap(confidences: np.ndarray, hits: np.ndarray, seed: int) -> Measure:
    def gap(drawn: np.ndarray) -> float:
        return 100 * global_average_precision(confidences[drawn], hits[drawn, 0], int(hits[drawn, 1].sum()))

    return measured("GAP", gap, len(confidences), unit="%", seed=seed)


def rank(queries: Tensor, database: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, query by query, all database rows from the most similar on by cosine, and their similarities.

    Args:
        queries: (Q, D) float.
        database: (N, D) float.

    Yields:
        (N,) int64 and (N,) float32. Only the similarities of a block of queries are in memory.
    """
    num_rows = len(database)
    for block in queries.split(max(1, _SIMILARITIES_AT_A_TIME // num_rows)):
        similarities, rankings = top_k(block, database, k=num_rows, block_database=num_rows)
        yield from zip(rankings.numpy(), similarities.numpy(), strict=True)


def _query_pictures(data: Revisited, crop: bool) -> Iterator[np.ndarray]:
    for index, (left, top, right, bottom) in enumerate(data.boxes):
        pixels = data.queries.decode(index)
        if crop:
            height, width = pixels.shape[:2]
            pixels = pixels[max(0, round(top)) : round(bottom), max(0, round(left)) : round(right)]
            if not pixels.size:
                raise ImageSetError(
                    f"the box {left:g},{top:g},{right:g},{bottom:g} of {data.queries.uri(index)} leaves nothing of its "
                    f"{width} x {height} pixels; correct the ground truth, or do not crop the queries"
                )
        yield np.ascontiguousarray(pixels)


def _group_numbers(images: ImageSet, role: str, numbers: dict[str, int]) -> Tensor:
    """Return the group of each image as a number; `numbers` is shared by the sets and filled on the way."""
    if images.labels is None:
        raise ImageSetError(
            f"the {role} set has images without a group ({images.root}); put each image into a folder named after its "
            "group (GROUP/name.jpg), or give a .txt list with a tab and the group after each path"
        )
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in images.labels])


def _check_shared(queries: Tensor, database: Tensor, *, alone: bool) -> None:
    groups, counts = database.unique(return_counts=True)
    if not torch.isin(queries, groups[counts > 1] if alone else groups).any():
        where = "has a second image" if alone else "is in the database"
        raise ImageSetError(f"the group of no query {where}; check the labels: they must be the same names")


def _check_ks(ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise FovealError(f"k={', '.join(map(str, ks)) or 'none'}; give one or more numbers from 1 on")
