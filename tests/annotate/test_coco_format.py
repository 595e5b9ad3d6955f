"""COCO in and out, against pycocotools' own reader."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from foveal.annotate.formats import read_annotations, write_annotations
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, Box, Mask
from foveal.errors import FovealError
from foveal.images.imageset import ImageSet

# pycocotools hands its masks to NumPy in a way that is going out of use.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
ALL = ("proposed", "unsure", "accepted", "rejected")
FILE = "annotations/instances_default.json"


def content(**changes: Any) -> dict[str, Any]:
    """A small file as COCO distributes them: ids with gaps, a polygon, uncompressed runs, a crowd."""
    return {
        "images": [{"id": 9, "file_name": "a.png", "width": 7, "height": 5}],
        "categories": [{"id": 44, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 9,
                "category_id": 2,
                "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]],
                "bbox": [1, 1, 3, 2],
            },
            {
                "id": 2,
                "image_id": 9,
                "category_id": 44,
                "segmentation": {"size": [5, 7], "counts": [5, 5, 25]},
                "bbox": [1, 0, 1.5, 5],
                "iscrowd": 0,
            },
            {"id": 3, "image_id": 9, "category_id": 2, "bbox": [0, 0, 2, 2], "keypoints": [1, 1, 2]},
            {"id": 4, "image_id": 9, "category_id": 2, "segmentation": {"size": [5, 7], "counts": [35]}, "iscrowd": 1},
            *changes.pop("more", []),
        ],
    } | changes


def saved(folder: Path, value: Any) -> Path:
    path = folder / "file.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize("polygons", [False, True])
def test_what_is_written_comes_back_but_for_labels_of_whole_pictures(
    annotated: AnnotatedSet, tmp_path: Path, polygons: bool
) -> None:
    notes = write_annotations(annotated, tmp_path / "out", format="coco", states=ALL, polygons=polygons)
    assert notes == ["2 labels of whole pictures are left out: COCO has no place for them"]
    found = read_annotations(tmp_path / "out")
    kept = tuple(one for one in annotated.annotations if one.mask or one.box)
    assert found.annotated == replace(annotated, annotations=kept)
    assert not found.notes


@pytest.mark.parametrize("polygons", [False, True])
def test_pycocotools_draws_the_same_masks(
    annotated: AnnotatedSet, tmp_path: Path, polygons: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_annotations(annotated, tmp_path / "out", format="coco", states=ALL, polygons=polygons)
    theirs = COCO(tmp_path / "out" / FILE)
    named = {one["file_name"]: number for number, one in theirs.imgs.items()}
    for mark, one in zip(
        theirs.loadAnns(theirs.getAnnIds()), (one for one in annotated.annotations if one.mask or one.box), strict=True
    ):
        assert mark["image_id"] == named[one.image]
        assert theirs.cats[mark["category_id"]]["name"] == one.class_name
        if one.mask is not None:
            assert (theirs.annToMask(mark).astype(bool) == one.mask.pixels()).all()
            assert mark["area"] == one.mask.pixels().sum()


def test_an_empty_mask_has_no_polygon_and_other_attributes_are_named(tmp_path: Path) -> None:
    images = (AnnotatedImage("a.png", 7, 5),)
    empty = Annotation("a.png", "cat", Mask.of(np.zeros((5, 7), bool)))
    notes = write_annotations(AnnotatedSet(("cat",), images, (empty,)), tmp_path / "out", format="coco", polygons=True)
    assert notes == ["1 empty masks are left out: they have no outline"]
    assert read_annotations(tmp_path / "out").annotated.annotations == ()
    mark = MARK | {"bbox": [0, 0, 1, 1], "attributes": {"occluded": False, "breed": "tabby", "track_id": 3}}
    found = read_annotations(saved(tmp_path, content(annotations=[mark])))
    assert found.annotated.annotations[0].track == "3"
    assert found.notes == ("attributes of annotations are left out: breed (1)",)


def test_only_accepted_annotations_are_written_unless_more_are_wanted(annotated: AnnotatedSet, tmp_path: Path) -> None:
    notes = write_annotations(annotated, tmp_path / "out", format="coco")
    assert notes[0] == "3 annotations are left out, which are not accepted"
    assert {one.state for one in read_annotations(tmp_path / "out").annotated.annotations} == {"accepted"}


def test_files_as_they_are_distributed_are_read(tmp_path: Path) -> None:
    found = read_annotations(saved(tmp_path, content()))
    assert found.annotated.classes == ("cat", "dog")
    dog, cat, boxed = found.annotated.annotations
    square, column = np.zeros((5, 7), bool), np.zeros((5, 7), bool)
    square[1:3, 1:4] = True
    column[:, 1] = True
    assert dog.class_name == "dog"
    assert dog.mask is not None
    assert (dog.mask.pixels() == square).all()
    assert dog.box is None  # it only repeats the extent
    assert cat.mask is not None
    assert (cat.mask.pixels() == column).all()
    assert cat.box == Box(1, 0, 1.5, 5)
    assert boxed.box == Box(0, 0, 2, 2)
    assert found.notes == (
        "1 crowds are left out: they show several things",
        "1 annotations have keypoints, which are left out",
    )


def test_pictures_are_found_in_the_image_set_and_copied_for_the_tool(
    annotated: AnnotatedSet, photographs: Path, tmp_path: Path
) -> None:
    images = ImageSet.open(photographs)
    write_annotations(annotated, tmp_path / "out", format="coco", images=images)
    assert (tmp_path / "out/images/default/deep/b.png").read_bytes() == (photographs / "deep/b.png").read_bytes()
    elsewhere = content(images=[{"id": 9, "file_name": "/data/photographs/deep/b.png", "width": 11, "height": 9}])
    found = read_annotations(saved(tmp_path, elsewhere | {"annotations": []}), images=images)
    assert [image.uri for image in found.annotated.images] == ["deep/b.png"]


MARK = {"id": 8, "image_id": 9, "category_id": 2}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"images": NaN}', "NaN is not finite"),
        (content(categories=[{"id": 2}]), "category 2 has no name"),
        (content(categories=[{"id": 2, "name": "a"}] * 2), "its id 2 is used twice"),
        (content(categories=[{"id": 2, "name": "a"}, {"id": 44, "name": "a"}]), "class 'a' is there 2 times"),
        (content(images=[{"id": 9, "file_name": "../a.png", "width": 7, "height": 5}]), "no path of a picture"),
        (content(images=[{"id": 9, "file_name": "/a.png", "width": 7, "height": 5}]), "no path of a picture"),
        (
            content(images=[{"id": 9, "file_name": "a.png", "width": 8, "height": 5}]),
            "mask of 7 x 5 pixels, the picture",
        ),
        (content(more=[MARK | {"id": 1}]), "its id 1 is used twice"),
        (content(more=[MARK | {"category_id": 3}]), "category 3 and picture 9, of which one is not listed"),
        (content(more=[MARK | {"image_id": 3}]), "category 2 and picture 3, of which one is not listed"),
        (content(more=[MARK | {"bbox": [0, 0, "nan", 1]}]), "nan is not finite"),
        (content(more=[MARK | {"bbox": [0, 0, 10**400, 1]}]), "is no number"),
        (content(more=[MARK | {"bbox": [0, 0, -1, 1]}]), "is no box"),
        (content(more=[MARK | {"bbox": [0, 0, 1]}]), "must be x, y, width and height"),
        (content(more=[MARK | {"bbox": [0, 0, 1, 1], "score": 1.5}]), "a score of 1.5"),
        (content(more=[MARK | {"segmentation": {"size": [5, 7], "counts": [34]}}]), "its runs are not those"),
        (content(more=[MARK | {"segmentation": {"size": [5, 7], "counts": [-1, 36]}}]), "its runs are not those"),
        (content(more=[MARK | {"segmentation": {"size": [5, 7], "counts": [2**70]}}]), "no whole numbers"),
        (content(more=[MARK | {"segmentation": {"size": [99999, 99999], "counts": "0"}}]), "mask of 99999 x 99999"),
        (content(more=[MARK | {"segmentation": {"size": [5, 7], "counts": "PPPYP"}}]), "annotation 8: "),
        (content(more=[MARK | {"segmentation": {"size": [5, 7], "counts": "\u00e90"}}]), "no COCO coding"),
        (content(more=[MARK | {"segmentation": [[0, 0, 1]]}]), "no list of x and y"),
        (content(more=[MARK | {"segmentation": [[0, 0, 1, 1, 1e12, 1]]}]), "points outside the picture"),
        (content(more=["text"]), "annotation 4 has no id"),
        (content(more=[{"id": 8, "image_id": 9, "segments_info": []}]), "panoptic"),
    ],
)
def test_bad_files_are_refused_in_words(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        read_annotations(saved(tmp_path, value), format="coco")


def test_pictures_of_another_size_missing_or_not_told_apart_are_refused(tmp_path: Path, photographs: Path) -> None:
    images = ImageSet.open(photographs)
    image = {"id": 9, "file_name": "deep/b.png", "width": 9, "height": 11}
    with pytest.raises(
        FovealError, match=r"9 x 11 pixels where it was annotated, and deep/b.png of 11 x 9 \(upright\)"
    ):
        read_annotations(saved(tmp_path, content(images=[image], annotations=[])), images=images)
    with pytest.raises(FovealError, match=r"lacks 1 annotated pictures: c\.png; give"):
        read_annotations(
            saved(tmp_path, content(images=[image | {"file_name": "c.png"}], annotations=[])), images=images
        )
    (photographs / "shallow").mkdir()
    (photographs / "shallow/b.png").write_bytes((photographs / "deep/b.png").read_bytes())
    both = ImageSet.open(photographs)
    with pytest.raises(FovealError, match=r"b\.png may be any of 2 pictures: deep/b\.png, shallow/b\.png"):
        read_annotations(saved(tmp_path, content(images=[image | {"file_name": "b.png"}], annotations=[])), images=both)
    (photographs / "deep/b.png").unlink()
    with pytest.raises(FovealError, match=r"deep/b\.png, which has annotations, cannot be read"):
        read_annotations(saved(tmp_path, content(images=[image], annotations=[])), images=images)


def test_a_folder_in_use_and_sets_that_contradict_themselves_are_refused(
    annotated: AnnotatedSet, tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/mine").write_text("")
    with pytest.raises(FovealError, match="used exists; choose another place"):
        write_annotations(annotated, tmp_path / "used", format="coco")
    first = annotated.annotations[0]
    for wrong, message in (
        (replace(first, class_name="cot"), "'cot' is no class; did you mean 'cat'"),
        (replace(first, image="deep/b.png"), "a mask of 7 x 5 pixels, the picture has 11 x 9"),
        (replace(first, image="c.png"), "not among the pictures"),
    ):
        with pytest.raises(FovealError, match=message):
            write_annotations(replace(annotated, annotations=(wrong,)), tmp_path / "out", format="coco")
    with pytest.raises(FovealError, match="'cocoa' is no format that can be written; did you mean 'coco'"):
        write_annotations(annotated, tmp_path / "out", format="cocoa")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["used"]
