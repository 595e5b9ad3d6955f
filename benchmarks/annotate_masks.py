"""Clicks that a mask takes, and objects followed from one mask, by a simulated annotator who knows the truth.

    python benchmarks/annotate_masks.py clicks --data FOLDER --models MODEL ... --untrained MODEL ... [--peers]
    python benchmarks/annotate_masks.py track --data FOLDER --models MODEL ... --untrained MODEL ...
    python benchmarks/annotate_masks.py propagate --data FOLDER --models MODEL ... --untrained MODEL ...
    python benchmarks/annotate_masks.py time --data FOLDER --models MODEL

FOLDER holds camvid and davis. A click goes to the middle of the largest part that is wrong; clicks are counted
until the mask reaches an intersection over union of 0.7 and of 0.8, at most 20 (20 where it never does). An object is a
connected part of one class in camvid (at least 1 % of the picture, one a picture), or that of every tenth frame in
davis. Beside the models, one a seed: the same networks untrained; the same method on raw colour in the place of
features; and, with the same rule for clicks, the random walker of scikit-image and GrabCut of OpenCV. Counts are
averaged over seeds. Differences are paired, with a bootstrap over pictures (camvid) or sequences (davis).
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from skimage.segmentation import random_walker

from foveal.annotate.cells import Sharpness
from foveal.annotate.patch_head import Example
from foveal.annotate.prompts import PromptSession, PromptSettings
from foveal.annotate.propagate_masks import MaskPropagator, Trust
from foveal.annotate.track import Following, follow
from foveal.annotate.types import Prompt
from foveal.evaluate.layouts.davis import Video, open_davis
from foveal.evaluate.results import measured_mean
from foveal.evaluate.video import frame_shape
from foveal.evaluate.video_metrics import contour_accuracy, region_similarity
from foveal.features.extract import Model, load
from foveal.features.geometry import Geometry
from foveal.features.seen import SeenImage, see
from foveal.images.preprocess import Preprocess

CAP, GOALS = 20, (0.7, 0.8)
VOID = 11  # of camvid
CLASSES = {"sky": 0, "building": 1, "road": 3, "tree": 5, "car": 8}  # of camvid
SIDE = 360  # pixels of the short side that models see
Segment = Callable[[Sequence[Prompt]], np.ndarray]
Seeds = Sequence[Sequence[tuple[list[float], list[float]]]]  # by seed and object: IoU and seconds, click by click


class Case(NamedTuple):
    """An object in a picture: pixels (H, W, 3), its truth (H, W) bool, what does not count, and its group."""

    pixels: np.ndarray
    truth: np.ndarray
    void: np.ndarray
    group: str


def main() -> None:
    """Print the table that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["clicks", "track", "propagate", "time"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--untrained", type=Path, nargs="*", default=[])
    parser.add_argument("--images", type=int, default=40, help="pictures of camvid")
    parser.add_argument("--examples", type=int, default=40, help="pictures with masks that teach a class")
    parser.add_argument("--part", default="test", help="of camvid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--sets", nargs="+", default=["camvid", "davis"], help="where clicks are counted")
    parser.add_argument("--peers", action="store_true", help="count the clicks of the other libraries too")
    parser.add_argument("--sharpened", action="store_true", help="let masks of videos follow edges")
    parser.add_argument("--trust", type=float, default=PromptSettings().sharpness.trust)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    {"clicks": clicks, "track": track, "propagate": propagate, "time": answer_times}[arguments.what](arguments)


def clicks(arguments: argparse.Namespace) -> None:
    """Count clicks, method by method."""
    settings = PromptSettings(sharpness=Sharpness(trust=arguments.trust))
    methods: dict[str, list[Callable[[Case], Segment]]] = {
        name: [lambda case, see=see: by_features(see(case.pixels), settings) for see in seeds]
        for name, seeds in makers(arguments).items()
    }
    if arguments.peers:
        methods |= {"random walker (scikit-image)": [by_random_walker], "GrabCut (OpenCV)": [by_grabcut]}
    for name in arguments.sets:
        cases = camvid(arguments) if name == "camvid" else davis(arguments.data / "davis")
        print(f"{name}: {len(cases)} objects in {len({case.group for case in cases})} groups")
        first = None
        for method, seeds in methods.items():
            counts = click_row(method, cases, [[annotate(c, make(c)) for c in cases] for make in seeds], first)
            first = counts if first is None else first


def makers(arguments: argparse.Namespace) -> dict[str, list[Callable[[np.ndarray], SeenImage]]]:
    """Return what sees a picture, one a seed, by name: the trained and the untrained models, and raw colour."""
    found: dict[str, list[Callable[[np.ndarray], SeenImage]]] = {}
    for name, paths in (("trained", arguments.models), ("untrained", arguments.untrained)):
        models = [load(path) for path in paths]
        if models:
            found[name] = [lambda pixels, model=model: see(model, pixels, size=arguments.side) for model in models]
    return found | {"raw colour": [lambda pixels: colour_of(pixels, arguments.side)]}


def answer_times(arguments: argparse.Namespace) -> None:
    """Print how long a mask takes after a click, and before the first one, the features at hand."""
    cases = [*camvid(arguments)[:4], *davis(arguments.data / "davis")[:4]]
    for name, (make, *_) in makers(arguments).items():
        for group in (cases[:4], cases[4:]):
            begun, answers = [], []
            for case in group:
                seen = make(case.pixels)
                started = time.perf_counter()
                segment = by_features(seen)
                begun.append(time.perf_counter() - started)
                answers += annotate(case, segment)[1][1:]  # the first one makes what all need
            middle, slow = np.quantile(1000 * np.array(answers), (0.5, 0.95))
            shape = "x".join(map(str, group[0].pixels.shape[1::-1]))
            print(f"| {name} | {shape} | {1000 * np.median(begun):.0f} | {middle:.0f} | {slow:.0f} |", flush=True)


def click_row(name: str, cases: Sequence[Case], seeds: Seeds, first: np.ndarray | None) -> np.ndarray:
    """Print the clicks of a method and how they differ from the first; return them, objects x goals."""
    each = np.array([[[reached(curve, goal) for goal in GOALS] for curve, _ in answers] for answers in seeds])
    failed = [np.mean([max(curve) < goal for answers in seeds for curve, _ in answers]) for goal in GOALS]
    counts = each.mean(axis=0)
    parts = [f"{m:.1f} (never {100 * f:.0f} %)" for m, f in zip(counts.mean(axis=0), failed, strict=True)]
    by_seed = ", ".join(" / ".join(f"{value:.1f}" for value in one) for one in each.mean(axis=1))
    changes = []
    for column in range(len(GOALS) if first is not None else 0):
        change = by_group(counts[:, column] - first[:, column], [case.group for case in cases])
        changes.append(f"{change.value:+.1f} ({change.low:+.1f} to {change.high:+.1f})")
    times = np.median([one for answers in seeds for _, seconds in answers for one in seconds])
    print(f"| {name} | {' | '.join(parts)} | {by_seed} | {1000 * times:.0f} | {' | '.join(changes)} |", flush=True)
    return counts


def by_group(values: np.ndarray, groups: Sequence[str]):
    """Return the mean with the bootstrap over groups."""
    means = [values[[group == one for group in groups]].mean() for one in dict.fromkeys(groups)]
    return measured_mean("clicks", means, unit="")


def reached(curve: Sequence[float], goal: float) -> int:
    """Return the number of clicks after which a goal was reached for the first time, CAP where never."""
    return next((number for number, iou in enumerate(curve, start=1) if iou >= goal), CAP)


def annotate(case: Case, segment: Segment) -> tuple[list[float], list[float]]:
    """Return the IoU after each click, until the last goal is reached, and the seconds of each answer."""
    prompts: list[Prompt] = []
    mask, curve, seconds = np.zeros_like(case.truth), [], []
    for _ in range(CAP):
        prompts.append(next_click(mask, case))
        started = time.perf_counter()
        mask = segment(prompts)
        seconds.append(time.perf_counter() - started)
        curve.append(region_similarity(mask, case.truth, void=case.void))
        if curve[-1] >= GOALS[-1]:
            break
    return curve, seconds


def next_click(mask: np.ndarray, case: Case) -> Prompt:
    """Return a click in the middle of the largest part that is wrong: the pixel farthest from its border."""
    best, click = 0, None
    for wrong, positive in ((case.truth & ~mask, True), (mask & ~case.truth, False)):
        count, parts, stats, _ = cv2.connectedComponentsWithStats((wrong & ~case.void).astype(np.uint8))
        if (
            count > 1
            and (largest := 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()))
            and (stats[largest, cv2.CC_STAT_AREA] > best)
        ):
            best = int(stats[largest, cv2.CC_STAT_AREA])
            part = np.pad((parts == largest).astype(np.uint8), 1)
            depth = cv2.distanceTransform(part, cv2.DIST_L2, 5)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            click = Prompt("point", ((float(x), float(y)),), positive)
    assert click is not None  # a perfect mask ends the clicks
    return click


def by_features(seen: SeenImage, settings: PromptSettings | None = None) -> Segment:
    """Return our method on a picture whose features are at hand."""
    session = PromptSession(seen, settings)
    return lambda prompts: session.mask(prompts) > 0.5


def by_random_walker(case: Case) -> Segment:
    """Return the random walker of scikit-image, on the picture at half its size, its seeds disks of 3 pixels."""
    small = cv2.resize(case.pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(np.float64) / 255
    settings = {"beta": 130, "mode": "cg_j", "channel_axis": -1, "return_full_prob": True, "tol": 1e-3, "prob_tol": 0.1}

    def segment(prompts: Sequence[Prompt]) -> np.ndarray:
        labels = np.zeros(small.shape[:2], np.uint8)
        for prompt in prompts:
            x, y = (int(v / 2) for v in prompt.points[0])
            cv2.circle(labels, (x, y), 2, 1 if prompt.positive else 2, -1)
        if not (labels == 2).any():  # it needs a second label: the border of the picture
            border = np.ones(labels.shape, bool)
            border[1:-1, 1:-1] = False
            labels[border & (labels == 0)] = 2
        found = random_walker(small, labels, **settings)
        return cv2.resize(found[0].astype(np.float32), case.truth.shape[::-1]) > 0.5

    return segment


def by_grabcut(case: Case) -> Segment:
    """Return GrabCut, on the picture at half its size; around clicks that are wanted, disks of 40 pixels are likely."""
    small = cv2.resize(case.pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)[..., ::-1].copy()

    def segment(prompts: Sequence[Prompt]) -> np.ndarray:
        mask = np.full(small.shape[:2], cv2.GC_PR_BGD, np.uint8)
        places = [(tuple(int(v / 2) for v in prompt.points[0]), prompt.positive) for prompt in prompts]
        for place, positive in places:
            if positive:
                cv2.circle(mask, place, 20, cv2.GC_PR_FGD, -1)
        for place, positive in places:
            cv2.circle(mask, place, 2, cv2.GC_FGD if positive else cv2.GC_BGD, -1)
        cv2.setRNGSeed(0)
        with contextlib.suppress(cv2.error):  # too few pixels of a side for its colour models
            cv2.grabCut(small, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
        found = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
        return cv2.resize(found, case.truth.shape[::-1]) > 0.5

    return segment


def camvid(arguments: argparse.Namespace) -> list[Case]:
    """Draw pictures, and of each a connected part of one class."""
    generator = np.random.default_rng(arguments.seed)
    folder = arguments.data / "camvid"
    paths = sorted((folder / arguments.part).glob("*.jpg")) or sorted((folder / arguments.part).glob("*.png"))
    cases = []
    for number in generator.permutation(len(paths))[: arguments.images]:
        path = paths[number]
        ids = ids_of(path)
        parts = []
        for value in np.setdiff1d(np.unique(ids), [VOID]):
            count, labels, stats, _ = cv2.connectedComponentsWithStats((ids == value).astype(np.uint8))
            parts += [labels == n for n in range(1, count) if stats[n, cv2.CC_STAT_AREA] >= 0.01 * ids.size]
        truth = parts[generator.integers(len(parts))]
        cases.append(Case(np.asarray(Image.open(path).convert("RGB")), truth, ids == VOID, path.stem))
    return cases


def davis(folder: Path) -> list[Case]:
    """Return every tenth frame of each sequence."""
    cases = []
    for video in open_davis(folder):
        for index in range(0, video.num_frames, 10):
            ids, void = video.mask(index)
            if (ids > 0).any():
                cases.append(Case(video.frame(index), ids > 0, void, video.name))
    return cases


def colour_of(pixels: np.ndarray, side: int, patch: int = 8) -> SeenImage:
    """Return a picture whose features are the mean colours of patches, in CIE Lab."""
    preprocess = Preprocess(mode="resize", resize_size=side, crop_size=None, patch_size=patch)
    geometry = Geometry.of(preprocess, *pixels.shape[:2])
    shown = cv2.resize(pixels, geometry.seen[::-1], interpolation=cv2.INTER_AREA)
    small = cv2.resize(shown, geometry.grid[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return SeenImage(shown, torch.from_numpy(cv2.cvtColor(small, cv2.COLOR_RGB2LAB)), geometry)


def propagate(arguments: argparse.Namespace) -> None:
    """Teach classes of camvid by pictures of its train part, and find them in those of its test part."""
    generator = np.random.default_rng(arguments.seed)
    parts = {}
    for part, count in (("train", arguments.examples), ("test", arguments.images)):
        paths = sorted((arguments.data / "camvid" / part).glob("*.jpg"))
        parts[part] = [paths[number] for number in generator.permutation(len(paths))[:count]]
    named = [(f"{kind} {seed}", make) for kind, seeds in makers(arguments).items() for seed, make in enumerate(seeds)]
    for method, make in named:
        shown = {
            part: [(make(np.asarray(Image.open(path).convert("RGB"))), ids_of(path)) for path in paths]
            for part, paths in parts.items()
        }
        for name, number in CLASSES.items():
            propagator = MaskPropagator([Example(seen, ids == number) for seen, ids in shown["train"]])
            values, states, chances = [], [], []
            for seen, ids in shown["test"]:
                answer = propagator.answer(seen)
                truth = ids == number
                mask = np.zeros_like(truth) if answer is None else answer.mask
                values.append(region_similarity(mask, truth, void=ids == VOID))
                if answer is not None:
                    state, chance = propagator.trusted(answer)
                    states.append((state == "proposed", values[-1] >= Trust().min_iou))
                    chances.append((chance - states[-1][1]) ** 2)
            proposed = [right for state, right in states if state]
            iou = measured_mean("IoU", 100 * np.array(values), unit="%")
            right = f"{100 * np.mean(proposed):.0f}" if proposed else "-"
            all_right = 100 * np.mean([right for _, right in states])
            print(
                f"| {method} | {name} | {iou.value:.1f} ({iou.low:.1f} to {iou.high:.1f}) | {all_right:.0f} | "
                f"{len(proposed)} of {len(states)} | {right} | {np.mean(chances):.3f} |",
                flush=True,
            )


def ids_of(path: Path) -> np.ndarray:
    """Return the classes (H, W) of a picture of camvid."""
    return np.asarray(Image.open(path.parent.with_name(f"{path.parent.name}annot") / f"{path.stem}.png"))


def track(arguments: argparse.Namespace) -> None:
    """Follow the objects of davis from the first mask alone."""
    videos = open_davis(arguments.data / "davis")
    kinds = (("trained", arguments.models), ("untrained", arguments.untrained))
    methods = [
        (f"{kind} {seed}", frames_of(load(path), arguments.side))
        for kind, paths in kinds
        for seed, path in enumerate(paths)
    ]
    methods.append(("raw colour", lambda video: lambda index: colour_of(video.frame(index), arguments.side)))
    for name, frames in methods:
        show_track(name, videos, Following(sharpness=Sharpness() if arguments.sharpened else None), frames)


def frames_of(model: Model, side: int) -> Callable[[Video], Callable[[int], SeenImage]]:
    """Return what shows a model the frames of a video."""

    def of(video: Video) -> Callable[[int], SeenImage]:
        size = frame_shape(*video.mask(0)[0].shape, short_side=side, patch_size=model.card.backbone.patch_size)
        return lambda index: see(model, video.frame(index), size=size)

    return of


def show_track(
    name: str,
    videos: Sequence[Video],
    following: Following,
    frames: Callable[[Video], Callable[[int], SeenImage]],
) -> None:
    """Print J&F of each sequence and the mean."""
    scores, started = [], time.perf_counter()
    for video in videos:
        pairs = []
        for index, ids in follow(frames(video), video.num_frames - 1, {0: video.mask(0)[0]}, following=following):
            truth, void = video.mask(index)
            pair = ids > 0, truth > 0
            pairs.append([region_similarity(*pair, void=void), contour_accuracy(*pair, void=void)])
        scores.append(np.mean(pairs, axis=0))
    count = sum(video.num_frames for video in videos)
    values = 100 * np.array(scores)
    each = " / ".join(f"{value:.1f}" for value in values.mean(axis=1))
    j, f = values.mean(axis=0)
    seconds = (time.perf_counter() - started) / count
    print(f"| {name} | {values.mean():.1f} | {j:.1f} | {f:.1f} | {each} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
