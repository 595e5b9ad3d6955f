"""Tiny folders in the layouts in which dense data are distributed: read, and refused where something is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.errors import BadImageError, FovealError, ImageSetError
from foveal.evaluate.layouts.dense import DenseData, open_depths, open_masks
from foveal.tasks.segment import IGNORED

SHAPE = (6, 8)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SHAPE, 3), 90, np.uint8)).save(path)


def target(path: Path, value: int, kind: type = np.uint8) -> None:
    """Write a mask or depth of one value, whose first pixel is 255 in masks and 0 in depth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(SHAPE, value, kind)
    values[0, 0] = 255 if kind is np.uint8 else 0
    Image.fromarray(values).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def voc(root: Path) -> Path:
    home = root / "VOCdevkit" / "VOC2012"
    for name, value in (("2007_01", 1), ("2007_02", 20)):
        picture(home / "JPEGImages" / f"{name}.jpg")
        target(home / "SegmentationClass" / f"{name}.png", value)
    text(home / "ImageSets" / "Segmentation" / "train.txt", "2007_01")
    text(home / "ImageSets" / "Segmentation" / "val.txt", "2007_02")
    return home / "SegmentationClass" / "2007_02.png"


def ade20k(root: Path) -> Path:
    for split, name, value in (("training", "ADE_train_1", 1), ("validation", "ADE_val_1", 150)):
        picture(root / "images" / split / f"{name}.jpg")
        path = root / "annotations" / split / f"{name}.png"
        target(path, value)
        values = np.asarray(Image.open(path)).copy()
        values[0, 0] = 0
        Image.fromarray(values).save(path)
    lines = [f"{number}\t0.1\t10\t20\tthing {number}, other name" for number in range(1, 151)]
    text(root / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName", *lines)
    return root / "annotations" / "validation" / "ADE_val_1.png"


def cityscapes(root: Path) -> Path:
    for split, city, value in (("train", "ulm", 0), ("val", "bonn", 18)):
        picture(root / "leftImg8bit" / split / city / f"{city}_0_0_leftImg8bit.png")
        target(root / "gtFine" / split / city / f"{city}_0_0_gtFine_labelTrainIds.png", value)
    return root / "gtFine" / "val" / "bonn" / "bonn_0_0_gtFine_labelTrainIds.png"


def nyud(root: Path) -> Path:
    for split, room in (("train", "attic"), ("test", "bath")):
        picture(root / room / "rgb_1.jpg")
        target(root / room / "sync_depth_1.png", 2500, np.uint16)
        text(root / f"nyu_{split}.txt", f"/{room}/rgb_1.jpg /{room}/sync_depth_1.png 518.8579")
    return root / "bath" / "sync_depth_1.png"


def kitti(root: Path) -> Path:
    for split, drive in (("train", "d1"), ("test", "d2")):
        picture(root / "input" / drive / "1.png")
        target(root / "gt_depth" / drive / "1.png", 2560, np.uint16)
        text(root / f"kitti_eigen_{split}.txt", f"{drive}/1.png {drive}/1.png 721.5", f"{drive}/2.png None 721.5")
    return root / "gt_depth" / "d2" / "1.png"


MASKS = [(voc, "Pascal VOC 2012", 21, 20), (ade20k, "ADE20K", 150, 149), (cityscapes, "Cityscapes", 19, 18)]
DEPTHS = [(nyud, "NYUd", 2.5), (kitti, "KITTI", 10.0)]
ALL: list[tuple[Callable[[Path], Path], Callable[[Path], DenseData]]] = [
    *((layout, open_masks) for layout, *_ in MASKS),
    *((layout, open_depths) for layout, *_ in DEPTHS),
]


@pytest.mark.parametrize(("layout", "name", "num_classes", "last"), MASKS)
def test_masks_are_read_as_distributed(
    tmp_path: Path, layout: Callable[[Path], Path], name: str, num_classes: int, last: int
) -> None:
    layout(tmp_path)
    found = open_masks(tmp_path)
    assert (found.name, len(found.train), len(found.test), len(found.classes)) == (name, 1, 1, num_classes)
    pixels, mask = found.test.load(0)
    assert pixels.shape == (*SHAPE, 3)
    assert (mask[0, 0], set(mask.ravel()[1:])) == (IGNORED, {last})
    found.check()


@pytest.mark.parametrize(("layout", "name", "metres"), DEPTHS)
def test_depth_is_read_as_distributed(tmp_path: Path, layout: Callable[[Path], Path], name: str, metres: float) -> None:
    layout(tmp_path)
    found = open_depths(tmp_path)
    assert (found.name, len(found.train), len(found.test)) == (name, 1, 1)
    depth = found.test.load(0)[1]
    assert (depth[0, 0], depth[1, 1]) == (0, pytest.approx(metres))
    assert (found.train.part, found.test.part) == (("framed", "whole") if name == "NYUd" else ("bottom", "bottom"))
    found.check()


@pytest.mark.parametrize(("layout", "opened"), ALL)
def test_a_missing_file_is_named(
    tmp_path: Path, layout: Callable[[Path], Path], opened: Callable[[Path], DenseData]
) -> None:
    path = layout(tmp_path)
    path.unlink()
    if opened is open_depths:  # where it may lie in several places, the first is named
        path = tmp_path / path.parent.name / path.name
    with pytest.raises(ImageSetError, match=rf"1 of 2 files are missing, first {path}"):
        opened(tmp_path)


@pytest.mark.parametrize(("layout", "name", "num_classes", "last"), MASKS)
def test_a_mask_with_a_wrong_number_is_named(
    tmp_path: Path, layout: Callable[[Path], Path], name: str, num_classes: int, last: int
) -> None:
    path = layout(tmp_path)
    target(path, 200)
    with pytest.raises(BadImageError, match=rf"{path} holds the value \d+; allowed are \d to \d+ for {num_classes} cl"):
        open_masks(tmp_path).check()


@pytest.mark.parametrize(("layout", "name", "metres"), DEPTHS)
def test_depth_of_zeros_or_of_8_bits_is_named(
    tmp_path: Path, layout: Callable[[Path], Path], name: str, metres: float
) -> None:
    path = layout(tmp_path)
    target(path, 0, np.uint16)
    with pytest.raises(ImageSetError, match=rf"no pixel of the 1 test pictures of {name} counts, first in {path}"):
        open_depths(tmp_path).check()
    target(path, 7)
    with pytest.raises(BadImageError, match=rf"{path} is of uint8; depth is a 16-bit grey PNG"):
        open_depths(tmp_path).check()


def test_a_stray_number_in_masks_without_names_is_named(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / "images" / f"{number}.png")
        target(tmp_path / "masks" / f"{number}.png", (0, 1, 7, 1, 0)[number])
    with pytest.raises(BadImageError, match=r"masks/2\.png holds the value 7, and no train mask of .* the value 2;"):
        open_masks(tmp_path)
    assert open_masks(tmp_path, ignored=[7, 255]).classes == ["class 0", "class 1"]
    text(tmp_path / "classes.txt", *"abcdefgh")
    assert open_masks(tmp_path).classes == list("abcdefgh")


def test_masks_of_nothing_but_ignored_pixels_are_refused(tmp_path: Path) -> None:
    path = cityscapes(tmp_path)
    target(path, 255)
    with pytest.raises(ImageSetError, match="no pixel of the 1 test pictures of Cityscapes counts"):
        open_masks(tmp_path).check()


def test_what_a_layout_says_itself_is_not_said_otherwise(tmp_path: Path) -> None:
    cityscapes(tmp_path / "streets")
    with pytest.raises(ImageSetError, match=r"Cityscapes says itself which pixels do not count; leave .* 7 out"):
        open_masks(tmp_path / "streets", ignored=[7])
    kitti(tmp_path / "roads")
    with pytest.raises(ImageSetError, match=r"unit=0\.001 has no effect on KITTI, whose files count 1/256 m"):
        open_depths(tmp_path / "roads", unit=0.001)


@pytest.mark.parametrize("unit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_unit_that_is_none_is_refused(tmp_path: Path, unit: float) -> None:
    with pytest.raises(FovealError, match="give the metres of the value 1 in the files of depth"):
        open_depths(tmp_path, unit=unit)


def test_lists_of_the_eigen_split_are_those_of_kitti(tmp_path: Path) -> None:
    kitti(tmp_path)
    for path in tmp_path.glob("*.txt"):
        path.rename(path.with_name(f"eigen_{path.stem.split('_')[-1]}_files_with_gt.txt"))
    found = open_depths(tmp_path)
    assert (found.name, found.test.load(0)[1][1, 1]) == ("KITTI", 10.0)


def test_lists_of_another_form_are_refused_by_name(tmp_path: Path) -> None:
    kitti(tmp_path)
    path = next(tmp_path.glob("*train*.txt"))
    path.write_text("0.png\n")
    with pytest.raises(ImageSetError, match=rf"{path} has the line '0.png'; each is a picture and its depth"):
        open_depths(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ImageSetError, match=rf"{path} is no text in UTF-8"):
        open_depths(tmp_path)


def test_what_depth_may_lie_as_is_said_in_full(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match=r"images/ and depth/, .*NAME\.color\.jpg beside NAME\.depth\.png"):
        open_depths(tmp_path)
    with pytest.raises(ImageSetError, match=r"testannot/, or from a public data set"):
        open_masks(tmp_path)
