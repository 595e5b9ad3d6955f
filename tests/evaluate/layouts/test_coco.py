"""COCO files as masks, in the forms in which they are distributed and exported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.errors import BadImageError, ImageSetError
from foveal.evaluate.layouts.dense import open_masks
from foveal.tasks.segment import IGNORED

H, W = 6, 8
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def square(top: int, left: int, bottom: int, right: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(mask: np.ndarray) -> dict[str, Any]:
    """Return uncompressed run lengths, column by column, the first of zeros."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


def annotated(path: Path, annotations: list[dict[str, Any]], names: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(folder / name)
    images = [{"id": 10 + n, "file_name": name, "height": H, "width": W} for n, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "categories": CATEGORIES, "annotations": annotations}))


def instance(category: int, segmentation: object, area: int, **more: object) -> dict[str, Any]:
    return {"id": 1, "image_id": 10, "category_id": category, "segmentation": segmentation, "area": area, **more}


@pytest.fixture
def crowd() -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[5, 6:] = True
    return mask


def test_instances_are_drawn_smaller_over_larger(tmp_path: Path, crowd: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="the extra coco is not installed")
    bottom = np.zeros((H, W), bool)
    bottom[4:, :3] = True
    packed = coco.encode(np.asfortranarray(bottom.astype(np.uint8)))
    annotations = [
        instance(3, square(1, 1, 3, 3), 4),
        instance(7, square(0, 0, 4, 6), 24),
        instance(7, runs(crowd), 2, iscrowd=1),
        instance(3, {"size": [H, W], "counts": packed["counts"].decode()}, 6),
        {"id": 5, "image_id": 10, "category_id": 3, "bbox": [0, 0, 8, 6]},
    ]
    for split in ("train2017", "val2017"):
        file = tmp_path / "annotations" / f"instances_{split}.json"
        annotated(file, annotations, ["b.jpg", "a.jpg"], tmp_path / split)
    found = open_masks(tmp_path)
    assert found.classes == ["background", "cat", "dog"]
    assert [pair.image.name for pair in found.test.pairs] == ["a.jpg", "b.jpg"]
    assert not found.test.load(0)[1].any()
    wanted = np.zeros((H, W), int)
    wanted[:4, :6] = 2
    wanted[4:, :3] = wanted[1:3, 1:3] = 1
    wanted[crowd] = IGNORED
    np.testing.assert_array_equal(found.test.load(1)[1], wanted)
    annotated(file, annotations[1:], ["b.jpg", "a.jpg"], tmp_path / "val2017")
    assert open_masks(tmp_path).test.hash != found.test.hash


def test_exports_of_one_file_and_of_two_folders_are_read(tmp_path: Path) -> None:
    one = tmp_path / "one"
    annotated(one / "annotations" / "instances_default.json", [], [f"{n}.jpg" for n in range(5)], one / "images")
    found = open_masks(one)
    assert (len(found.train), len(found.test)) == (4, 1)
    two = tmp_path / "two"
    for name in ("train", "valid"):
        annotated(two / name / "_annotations.coco.json", [], ["x.jpg"], two / name)
    assert [open_masks(two).train.pairs[0].image, open_masks(two).test.pairs[0].image] == [
        two / "train" / "x.jpg",
        two / "valid" / "x.jpg",
    ]


def panoptic(folder: Path, numbers: np.ndarray) -> None:
    segments = [
        {"id": 1, "category_id": 7},
        {"id": 300, "category_id": 3},
        {"id": 70000, "category_id": 3, "iscrowd": 1},
    ]
    annotation = {"image_id": 10, "file_name": "x.png", "segments_info": segments}
    for split in ("train2017", "val2017"):
        annotated(folder / "annotations" / f"panoptic_{split}.json", [annotation], ["x.jpg"], folder / split)
        pixels = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=2).astype(np.uint8)
        (folder / "annotations" / f"panoptic_{split}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "annotations" / f"panoptic_{split}" / "x.png")


def test_panoptic_pictures_are_read_by_their_segments(tmp_path: Path) -> None:
    numbers = np.zeros((H, W), int)
    numbers[:2], numbers[2:4], numbers[4] = 1, 300, 70000
    panoptic(tmp_path, numbers)
    found = open_masks(tmp_path)
    assert found.classes == ["cat", "dog"]
    assert found.test.load(0)[1][:, 0].tolist() == [1, 1, 0, 0, IGNORED, IGNORED]
    numbers[0, 0] = 9
    panoptic(tmp_path, numbers)
    with pytest.raises(BadImageError, match=r"x.png holds the segment 9, which its file does not list"):
        open_masks(tmp_path).check()


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (instance(4, square(0, 0, 2, 2), 4), "annotation 1 is of category 4, which is not listed"),
        ({**instance(3, [], 0), "image_id": 99}, "an annotation is of the picture 99, which is not listed"),
        ({"id": 1}, r"instances_train.json is no COCO file \(KeyError: 'image_id'\)"),
    ],
)
def test_files_that_contradict_themselves_are_named(tmp_path: Path, annotation: dict[str, Any], said: str) -> None:
    for split in ("train", "val"):
        file = tmp_path / "annotations" / f"instances_{split}.json"
        annotated(file, [annotation], ["x.jpg"], tmp_path / split)
    with pytest.raises(ImageSetError, match=said):
        open_masks(tmp_path)


def test_missing_pictures_and_several_files_of_a_split_are_named(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        annotated(tmp_path / "annotations" / f"instances_{split}.json", [], ["x.jpg"], tmp_path / split)
    (tmp_path / "val2017" / "x.jpg").unlink()
    with pytest.raises(ImageSetError, match=r"are missing, first .*val2017/x.jpg"):
        open_masks(tmp_path)
    (tmp_path / "annotations" / "instances_val2014.json").write_text("{}")
    with pytest.raises(ImageSetError, match=r"instances_val2014.json.*; for val or test there must be one"):
        open_masks(tmp_path)


def test_a_mask_of_another_size_than_its_picture_is_named(tmp_path: Path, crowd: np.ndarray) -> None:
    pytest.importorskip("pycocotools.mask", reason="the extra coco is not installed")
    for split in ("train", "val"):
        file = tmp_path / "annotations" / f"instances_{split}.json"
        annotated(file, [instance(3, runs(crowd[:, 1:]), 4)], ["x.jpg"], tmp_path / split)
    with pytest.raises(BadImageError, match=r"annotation 1 of .*x.jpg is of 7 x 6 pixels, the picture of 8 x 6"):
        open_masks(tmp_path).check()
