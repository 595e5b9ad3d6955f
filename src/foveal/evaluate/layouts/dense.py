"""Pictures with masks or depth, in the layouts in which they are distributed; every file is looked for first."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from foveal.errors import BadImageError, ImageSetError
from foveal.evaluate.layouts.coco import Part, find_coco
from foveal.evaluate.layouts.masked_set import find_masked_set
from foveal.features.batches import Progress
from foveal.images.sources import IMAGE_SUFFIXES
from foveal.tasks.samples import DenseSet, Depths, Masks, Pair, check_files, read_ids
from foveal.tasks.segment import IGNORED

_TRAIN, _TEST = ("train", "training"), ("test", "val", "validation")
_IMAGES, _MASKS, _DEPTHS = ("images",), ("masks", "annotations", "labels"), ("depth", "depths")
_HELD_OUT = 0.2
_CITYSCAPES = [
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
]
_VOC = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv/monitor",
]

Pairs = tuple[list[Pair], list[Pair]]


@dataclass(frozen=True)
class DenseData:
    """Two sets and the name of the data."""

    name: str
    train: DenseSet
    test: DenseSet

    @property
    def classes(self) -> list[str]:
        """Names of the classes of masks; none for depth."""
        return list(self.train.reader.classes) if isinstance(self.train.reader, Masks) else []

    @property
    def hash(self) -> str:
        """The hash of both sets."""
        return f"{self.train.hash[:32]}{self.test.hash[:32]}"

    def check(self, progress: Progress | None = None) -> None:
        """Read every mask or depth, so that none ends long work that was begun.

        Args:
            progress: called with (files done, files in all).

        Raises:
            BadImageError: one that cannot be read or used; it is named.
            ImageSetError: no pixel of a set counts.
        """
        total = len(self.train) + len(self.test)
        for name, part, before in (("train", self.train, 0), ("test", self.test, len(self.train))):
            counting = 0
            for index in range(len(part)):
                target = part.target(index)
                counting += bool(((target > 0) if target.dtype.kind == "f" else (target != IGNORED)).any())
                if progress:
                    progress(before + index + 1, total)
            if not counting:
                raise ImageSetError(
                    f"no pixel of the {len(part)} {name} pictures of {self.name} counts, first in "
                    f"{part.pairs[0].target}: every mask is ignored, or every depth 0; check the files"
                )


def open_masks(data: str | Path, *, ignored: Iterable[int] | None = None) -> DenseData:
    """Open pictures with masks.

    | layout | what is read |
    |---|---|
    | Pascal VOC 2012 | JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}.txt |
    | ADE20K (scene parsing) | images and annotations, each with training and validation; objectInfo150.txt for names |
    | Cityscapes | leftImg8bit and gtFine with {train,val}/CITY; gtFine_labelTrainIds |
    | image set with the column mask_uri | see `foveal.evaluate.layouts.masked_set.find_masked_set` |
    | COCO | see `foveal.evaluate.layouts.coco.find_coco` |
    | train, trainannot, test or val, testannot or valannot | pictures and masks of the same names |
    | images and masks (or annotations, labels), with train and test or val, or without | likewise |

    Where there are no splits, the last fifth of the pictures, in the order of their names, is the test set. In the last
    two layouts classes.txt (a name a line) names the classes; without it the train masks must hold all numbers
    from 0 on.

    Args:
        data: the folder.
        ignored: values of pixels that do not count, for the last two layouts; None is 255.

    Raises:
        ImageSetError: none of these, a file is missing, or `ignored` for a layout that has values of its own.
        BadImageError: a mask with a value out of range; the file is named.
    """
    folder = Path(data)
    for ours in (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012"):
        if (ours / "SegmentationClass").is_dir():
            return _data(_own("Pascal VOC 2012", ignored), _voc(ours), Masks(_VOC))
    if (folder / "gtFine").is_dir():
        return _data(_own("Cityscapes", ignored), _cityscapes(folder), Masks(_CITYSCAPES))
    if parts := find_coco(folder):
        return _coco(_own(folder.resolve().name, ignored), parts)
    if saved := find_masked_set(folder):
        pairs = (saved.train, saved.test) if saved.test else _split(saved.train)
    else:
        pairs = _beside(folder, "mask", _MASKS, suffixes=("annot",))
    if (folder / "annotations" / "training").is_dir() and (folder / "objectInfo150.txt").is_file():
        reader = Masks(_ade20k_names(folder / "objectInfo150.txt"), frozenset({0}), offset=1)
        return _data(_own("ADE20K", ignored), pairs, reader)
    values = frozenset((255,) if ignored is None else ignored)
    found = _data(folder.resolve().name, pairs, Masks(_class_names(folder, pairs[0], values), values))
    for part in (found.train, found.test):
        for index in range(len(part)):
            part.target(index)
    return found


def open_depths(data: str | Path, *, unit: float | None = None) -> DenseData:
    """Open pictures with 16-bit depth.

    | layout | what is read |
    |---|---|
    | lists | `*train*.txt`, `*test*.txt` with "IMAGE DEPTH ..." a line, as for NYUd and the Eigen split of KITTI |
    | images and depth, with train and test or val, or without | files of the same names |
    | NAME.color.EXT beside NAME.depth.png | 7-Scenes and other recordings |

    Files of lists lie below the folder, input/ or gt_depth/; lines with None instead of a depth are passed over. As in
    the published protocols, KITTI is cut to its bottom, and the train pictures of NYUd lose their white frame.

    Where there are no splits, the last fifth of the pictures, in the order of their names, is the test set: a block of
    consecutive frames of a recording.

    Args:
        data: the folder.
        unit: metres of the value 1; None is 0.001, millimetres, and 1/256 for lists of KITTI, which have no other.

    Raises:
        ImageSetError: none of these, a file is missing, or a `unit` for KITTI.
        FovealError: a unit that is not above 0.
    """
    folder, reader = Path(data), Depths() if unit is None else Depths(unit)
    lists = [
        sorted(path for path in folder.glob("*.txt") if split in path.stem.split("_")) for split in ("train", "test")
    ]
    if all(lists):
        kitti = "kitti" in lists[0][0].stem or "eigen" in lists[0][0].stem
        name = "KITTI" if kitti else "NYUd" if "nyu" in lists[0][0].stem else folder.resolve().name
        pairs = (_listed(folder, lists[0][0]), _listed(folder, lists[1][0]))
        if kitti and unit is not None:
            raise ImageSetError(f"unit={unit:g} has no effect on KITTI, whose files count 1/256 m; leave it out")
        found = _data(name, pairs, Depths(1 / 256) if kitti else reader)
        if kitti:
            return DenseData(name, replace(found.train, part="bottom"), replace(found.test, part="bottom"))
        return replace(found, train=replace(found.train, part="framed")) if name == "NYUd" else found
    if frames := sorted(folder.glob("*.color.*")):
        pairs = _split([Pair(path, path.with_name(path.name.split(".color.")[0] + ".depth.png")) for path in frames])
        return _data(folder.resolve().name, pairs, reader)
    return _data(folder.resolve().name, _beside(folder, "depth", _DEPTHS, suffixes=("depth",)), reader)


def _own(name: str, ignored: Iterable[int] | None) -> str:
    """Return the name of data whose layout says itself what does not count; refuse another word on it."""
    if ignored is not None:
        values = ", ".join(map(str, ignored))
        raise ImageSetError(f"{name} says itself which pixels do not count; leave the ignored values {values} out")
    return name


def _data(name: str, pairs: Pairs, reader: Masks | Depths) -> DenseData:
    check_files(pairs[0])
    check_files(pairs[1])
    return DenseData(name, DenseSet(pairs[0], reader), DenseSet(pairs[1], reader))


def _coco(name: str, parts: list[Part]) -> DenseData:
    train, test = parts if len(parts) == 2 else (parts[0], parts[0])
    pairs = (train.pairs, test.pairs) if len(parts) == 2 else _split(train.pairs)
    for part in pairs:
        check_files(part)
    return DenseData(name, DenseSet(pairs[0], train.reader), DenseSet(pairs[1], test.reader))


def _voc(folder: Path) -> Pairs:
    def part(name: str) -> list[Pair]:
        stems = _lines(folder / "ImageSets" / "Segmentation" / f"{name}.txt")
        return [
            Pair(folder / "JPEGImages" / f"{stem}.jpg", folder / "SegmentationClass" / f"{stem}.png") for stem in stems
        ]

    return part("train"), part("val")


def _cityscapes(folder: Path) -> Pairs:
    def part(name: str) -> list[Pair]:
        found = []
        for image in sorted((folder / "leftImg8bit" / name).glob("*/*_leftImg8bit.png")):
            stem = image.name.removesuffix("_leftImg8bit.png")
            found.append(Pair(image, folder / "gtFine" / name / image.parent.name / f"{stem}_gtFine_labelTrainIds.png"))
        return found

    return part("train"), part("val")


def _ade20k_names(path: Path) -> list[str]:
    """Return the names of the 150 classes: the last column, of which the first synonym."""
    return [line.split("\t")[-1].split(",")[0].strip() for line in _lines(path)[1:]]


def _beside(folder: Path, what: str, names: tuple[str, ...], *, suffixes: tuple[str, ...]) -> Pairs:
    """Pair the pictures of folders images/ and names[i]/, or train/ and train + suffix/, by their stems."""
    images = _first(folder, _IMAGES)
    targets = _first(folder, names)
    if images and targets:
        train, test = _first(images, _TRAIN), _first(images, _TEST)
        if train and test:
            return _paired(train, targets / train.name), _paired(test, targets / test.name)
        return _split(_paired(images, targets))
    train, test = _first(folder, _TRAIN), _first(folder, _TEST)
    beside = [part.with_name(part.name + suffixes[0]) for part in (train, test) if part]
    if len(beside) == 2 and all(path.is_dir() for path in beside):
        assert train
        assert test
        return _paired(train, beside[0]), _paired(test, beside[1])
    seen = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) if folder.is_dir() else "nothing"
    beside_each = "from NAME.color.jpg beside NAME.depth.png, " if what == "depth" else ""
    raise ImageSetError(
        f"{folder} holds {seen}; a {what} for every picture is read from images/ and {names[0]}/, from train/ and "
        f"train{suffixes[0]}/ with test/ and test{suffixes[0]}/, {beside_each}or from a public data set as distributed"
    )


def _paired(images: Path, targets: Path) -> list[Pair]:
    """Pair files by their names without the ending; a target may be missing, which `check_files` says."""
    by_stem = {path.stem: path for path in targets.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES}
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return [Pair(path, by_stem.get(path.stem, targets / f"{path.stem}.png")) for path in files]


def _split(pairs: list[Pair]) -> Pairs:
    count = max(round(_HELD_OUT * len(pairs)), 1)
    return pairs[:-count], pairs[-count:]


def _listed(folder: Path, path: Path) -> list[Pair]:
    found = []
    for line in _lines(path):
        image, depth, *_ = [*line.split(), ""]
        if not depth:
            raise ImageSetError(f"{path} has the line '{line}'; each is a picture and its depth, with a blank between")
        if depth != "None":
            found.append(Pair(_place(folder, image, "input"), _place(folder, depth, "gt_depth")))
    return found


def _place(folder: Path, name: str, below: str) -> Path:
    """Return where a file of a list lies, in the folder or in one below it; the first place where it is nowhere."""
    places = [folder / name.lstrip("/"), folder / below / name.lstrip("/")]
    return next((place for place in places if place.is_file()), places[0])


def _class_names(folder: Path, pairs: list[Pair], ignored: frozenset[int]) -> list[str]:
    if (folder / "classes.txt").is_file():
        return _lines(folder / "classes.txt")
    check_files(pairs)
    first: dict[int, Path] = {}
    for pair in pairs:
        for number in np.unique(read_ids(pair.target)):
            first.setdefault(int(number), pair.target)
    found = sorted(set(first) - ignored)
    if found != list(range(len(found))):
        stray = next(number for place, number in enumerate(found) if number != place)
        raise BadImageError(
            "wrong_id",
            f"{first[stray]} holds the value {stray}, and no train mask of {folder} the value "
            f"{found.index(stray)}; correct the mask, give {stray} as a value that does not count, or name the "
            "classes, one a line, in classes.txt",
        )
    return [f"class {number}" for number in found]


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ImageSetError(f"{path} cannot be read ({error.strerror}); the layout needs it") from error
    except UnicodeDecodeError as error:
        raise ImageSetError(f"{path} is no text in UTF-8 ({error.reason}); save it as such") from error
