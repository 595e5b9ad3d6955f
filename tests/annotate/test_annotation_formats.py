"""Every format: what comes back, against what was written, and what is said of the rest."""

import base64
import io
import json
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco

from foveal.annotate.formats import WRITTEN, read_annotations, write_annotations
from foveal.annotate.formats.label_studio_brush import decode_brush, encode_brush
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, Box, Mask
from foveal.errors import FovealError
from foveal.images.imageset import ImageSet

# pycocotools hands its masks to NumPy in a way that is going out of use.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
ALL = ("proposed", "unsure", "accepted", "rejected")


@pytest.mark.parametrize("name", ["label-studio", "cvat", "fiftyone"])
@pytest.mark.parametrize("given", [True, False])
def test_what_is_written_comes_back(
    annotated: AnnotatedSet, photographs: Path, tmp_path: Path, name: str, given: bool
) -> None:
    images = ImageSet.open(photographs) if given else None
    assert write_annotations(annotated, tmp_path / "out", format=name, states=ALL, images=images) == []
    found = read_annotations(tmp_path / "out", images=images)
    assert found.annotated.classes == annotated.classes
    assert found.annotated.images == annotated.images
    assert sorted(found.annotated.annotations, key=repr) == sorted(annotated.annotations, key=repr)
    assert found.notes == ()


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_pictures_are_copied_to_where_the_format_wants_them(
    annotated: AnnotatedSet, photographs: Path, tmp_path: Path, name: str
) -> None:
    write_annotations(annotated, tmp_path / "out", format=name, images=ImageSet.open(photographs))
    copies = [
        path
        for path in (tmp_path / "out").rglob("b.png")
        if path.parent.parent.name not in ("SegmentationClass", "SegmentationObject")
    ]
    assert [path.read_bytes() for path in copies] == [(photographs / "deep/b.png").read_bytes()]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_yolo_boxes_are_shares_of_the_sides(annotated: AnnotatedSet, tmp_path: Path) -> None:
    notes = write_annotations(annotated, tmp_path / "out", format="yolo")
    assert yaml.safe_load((tmp_path / "out/data.yaml").read_text())["names"] == {0: "cat", 1: "big dog"}
    lines = (tmp_path / "out/labels/train/a.txt").read_text().splitlines()
    number, *values = lines[1].split()
    assert number == "1"
    expected = [(1.25 + 3.5 / 2) / 7, 2 / 5, 3.5 / 7, 4 / 5]
    assert np.allclose(list(map(float, values)), expected)
    assert notes[1] == "1 labels of whole pictures are left out: YOLO's files have no place for them"


def test_yolo_boxes_end_where_their_picture_does(tmp_path: Path) -> None:
    boxes = (Box(-2, 1, 6, 2), Box(9, 9, 3, 3), Box(1, 1, 0, 2))
    annotated = AnnotatedSet(
        ("cat",),
        (AnnotatedImage("a.png", 8, 5),),
        tuple(Annotation("a.png", "cat", None, box) for box in boxes),
    )
    notes = write_annotations(annotated, tmp_path / "out", format="yolo")
    (line,) = (tmp_path / "out/labels/train/a.txt").read_text().splitlines()
    assert [float(value) for value in line.split()] == [0, 0.25, 0.4, 0.5, 0.4]
    assert notes[0] == "2 boxes without an area in their picture are left out: YOLO's files have no place for them"


def test_yolo_labels_lie_where_they_are_looked_for(tmp_path: Path) -> None:
    """Ultralytics takes the last folder `images` of a picture's path for `labels`."""
    annotated = AnnotatedSet(("cat",), (AnnotatedImage("deep/images/a.png", 7, 5),), ())
    write_annotations(annotated, tmp_path / "out", format="yolo")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.txt")] == [
        "images/train/deep/labels/a.txt"
    ]


@pytest.mark.parametrize("name", ["yolo", "voc"])
def test_what_was_rejected_is_never_written_as_true(annotated: AnnotatedSet, tmp_path: Path, name: str) -> None:
    notes = write_annotations(annotated, tmp_path / "out", format=name, states=ALL)
    assert notes[:2] == [
        "1 annotations are left out, which are not proposed or unsure or accepted",
        f"2 annotations are written that nobody has accepted: {name} cannot tell them apart",
    ]


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_pictures_that_are_gone_are_left_out_and_named(annotated: AnnotatedSet, tmp_path: Path, name: str) -> None:
    """A project knows no size of a picture with a box that it can no longer read."""
    boxes = tuple(Annotation(uri, "cat", None, Box(1, 1, 2, 2)) for uri in ("a.png", "gone.png"))
    images = (*annotated.images, AnnotatedImage("gone.png", 0, 0))
    notes = write_annotations(AnnotatedSet(("cat",), images, boxes), tmp_path / "out", format=name)
    assert notes[0] == "1 pictures cannot be read any more, and are left out with 1 annotations, first gone.png"


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\ud800"])
def test_names_that_no_file_holds_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FovealError, match="cannot be the name of a class"):
        write_annotations(AnnotatedSet((name,), (), ()), tmp_path / "out", format="cvat")


def test_yolo_outlines_cover_the_masks(annotated: AnnotatedSet, tmp_path: Path) -> None:
    write_annotations(annotated, tmp_path / "out", format="yolo-seg")
    for uri, (width, height) in (("a.png", (7, 5)), ("deep/b.png", (11, 9))):
        mask = next(one.mask for one in annotated.annotations if one.image == uri and one.mask is not None)
        line = (tmp_path / "out/labels/train" / uri).with_suffix(".txt").read_text().split()
        points = np.array(line[1:], float).reshape(-1, 2) * [width, height]
        drawn = coco.decode(coco.merge(coco.frPyObjects([points.ravel().tolist()], height, width)))
        assert (drawn.astype(bool) == mask.pixels()).all()


def test_voc_masks_show_the_smaller_of_two_and_say_so(tmp_path: Path) -> None:
    large, small = np.zeros((5, 7), bool), np.zeros((5, 7), bool)
    large[:4, :5] = small[1:3, 1:3] = True
    annotations = (
        Annotation("a.png", "cat", Mask.of(small)),
        Annotation("a.png", "dog", Mask.of(large)),
        Annotation("a.png", "dog", None, Box(0, 0, 1, 1)),
    )
    annotated = AnnotatedSet(("cat", "dog"), (AnnotatedImage("a.png", 7, 5),), annotations)
    notes = write_annotations(annotated, tmp_path / "out", format="voc")
    with Image.open(tmp_path / "out/SegmentationClass/a.png") as picture:
        assert (np.array(picture) == np.where(small, 1, np.where(large, 2, 0))).all()
        assert picture.convert("RGB").getpixel((0, 0)) == (0, 128, 0)
    with Image.open(tmp_path / "out/SegmentationObject/a.png") as picture:
        assert (np.array(picture) == np.where(small, 1, np.where(large, 2, 0))).all()
    assert (tmp_path / "out/labelmap.txt").read_text().splitlines()[1:3] == ["background:0,0,0::", "cat:128,0,0::"]
    assert notes == [
        "1 boxes and labels of whole pictures are left out: VOC's masks have no place for them",
        "4 pixels are of several masks, and show the smallest",
    ]


@pytest.mark.parametrize("name", ["yolo", "voc"])
def test_pictures_that_would_share_a_file_are_refused(tmp_path: Path, name: str) -> None:
    images = (AnnotatedImage("a.png", 7, 5), AnnotatedImage("a.jpg", 7, 5))
    with pytest.raises(FovealError, match=r"a\.png and a\.jpg would share (labels/train/)?a\."):
        write_annotations(AnnotatedSet(("cat",), images, ()), tmp_path / "out", format=name)


def test_a_full_disk_leaves_nothing_behind(
    annotated: AnnotatedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FovealError, match="No space left on device"):
        write_annotations(annotated, tmp_path / "out", format="cvat")
    assert list(tmp_path.iterdir()) == []


# Label Studio


def task(result: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    sides = {"original_width": 200, "original_height": 100, "image_rotation": 0}
    whole = {"id": "r", "from_name": "x", "to_name": "image", **sides, **result}
    return [{"id": 4, "data": {"image": "/data/upload/1/0123abcd-a.png"}, "annotations": [{"result": [whole]}], **more}]


def read_tasks(folder: Path, tasks: Any) -> AnnotatedSet:
    (folder / "export.json").write_text(json.dumps(tasks))
    return read_annotations(folder / "export.json").annotated


def test_regions_of_label_studio_are_percentages(tmp_path: Path) -> None:
    value = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["cat", "dog"]}
    found = read_tasks(tmp_path, task({"type": "rectanglelabels", "value": value}))
    assert found.images == (AnnotatedImage("a.png", 200, 100),)
    assert [(one.class_name, one.box) for one in found.annotations] == [
        ("cat", Box(20, 20, 60, 40)),
        ("dog", Box(20, 20, 60, 40)),
    ]
    points = [[10, 20], [40, 20], [40, 60], [10, 60]]
    drawn = read_tasks(tmp_path, task({"type": "polygonlabels", "value": {"points": points, "polygonlabels": ["cat"]}}))
    expected = np.zeros((100, 200), bool)
    expected[20:60, 20:80] = True
    assert drawn.annotations[0].mask == Mask.of(expected)
    turned = read_tasks(tmp_path, task({"type": "rectanglelabels", "value": value | {"x": 50, "rotation": 90}}))
    expected = np.zeros((100, 200), bool)
    expected[20:80, 60:100] = True  # a quarter clockwise around the upper left corner
    assert turned.annotations[0].mask == Mask.of(expected)


def test_predictions_are_proposals_and_the_last_annotation_counts(tmp_path: Path) -> None:
    result = {"type": "choices", "value": {"choices": ["cat"]}, "original_width": 200, "original_height": 100}
    old = {"result": [result | {"value": {"choices": ["old"]}}]}
    skipped = old | {"was_cancelled": True}
    tasks = [
        {
            "data": {"image": "a.png"},
            "annotations": [old, {"result": [result]}, skipped],
            "predictions": [{"score": 0.5, "result": [result]}],
        }
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    found = read_annotations(tmp_path)
    assert [(one.class_name, one.state, one.score) for one in found.annotated.annotations] == [
        ("cat", "accepted", None),
        ("cat", "proposed", 0.5),
    ]
    assert found.notes == ("1 tasks have several annotations or predictions; the ground truth or the last was read",)


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        ("/data/local-files/?d=photos/a%20b.png", "photos/a b.png"),
        ("https://label.studio:8080/data/local-files/?d=photos/a.png", "photos/a.png"),  # as it makes them of a folder
        ("https://label.studio/data/upload/7/0123abcd-a.png", "a.png"),
        ("s3://bucket/photos/a.png", "photos/a.png"),
        ("https://cdn.net/photos/a%20b.png?token=3/4#x", "photos/a b.png"),
        ("photos/a%20b.png", "photos/a%20b.png"),
    ],
)
def test_addresses_of_label_studio_are_names_of_pictures(tmp_path: Path, address: str, uri: str) -> None:
    value = {"x": 0, "y": 0, "width": 1, "height": 1, "rectanglelabels": ["cat"]}
    tasks = task({"type": "rectanglelabels", "value": value})
    assert [one.uri for one in read_tasks(tmp_path, [tasks[0] | {"data": {"image": address}}]).images] == [uri]


def test_what_label_studio_says_of_regions_is_not_said_of_the_picture(tmp_path: Path) -> None:
    """Results as its documentation shows them: choices of a region, a relation, a point and a box without a label."""
    place = {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 0}
    tasks = task({"type": "rectanglelabels", "value": {**place, "rectanglelabels": ["cat"]}})
    tasks[0]["annotations"][0]["result"] += [
        {"id": "r", "type": "choices", "value": {**place, "choices": ["broken"]}},
        {"type": "relation", "from_id": "r", "to_id": "r", "direction": "right"},
        {"id": "s", "type": "labels", "value": {"x": 1, "y": 2, "width": 3, "labels": ["tip"]}},
        {"id": "t", "type": "rectanglelabels", "value": {**place, "rectanglelabels": []}},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    found = read_annotations(tmp_path / "export.json")
    assert [(one.class_name, one.box) for one in found.annotated.annotations] == [("cat", Box(2, 2, 6, 4))]
    kinds = "choices of a region, labels, rectanglelabels without a label, relation"
    assert found.notes == (f"4 results are of kinds that are left out: {kinds}",)


def test_the_annotation_that_was_changed_last_counts_whatever_their_order(tmp_path: Path) -> None:
    result = {"type": "choices", "value": {"choices": ["new"]}, "original_width": 200, "original_height": 100}
    old = {"updated_at": "2026-01-01T09:00:00Z", "result": [result | {"value": {"choices": ["old"]}}]}
    new = {"updated_at": "2026-01-02T09:00:00Z", "result": [result]}
    found = read_tasks(tmp_path, [{"data": {"image": "a.png"}, "annotations": [new, old]}])
    assert [one.class_name for one in found.annotations] == ["new"]


def octets(bits: str) -> list[int]:
    return [int(bits[place : place + 8].ljust(8, "0"), 2) for place in range(0, len(bits), 8)]


def test_brush_strokes_by_hand() -> None:
    """One painted pixel of two: the bits written out from the description of the coding."""
    bits = f"{8:032b}" + "00111" + "0010" + "0011" + "0111" + "1111" + "100011" + "00000000" + "100011" + "11111111"
    assert encode_brush(np.array([[False, True]])) == octets(bits)
    literal = f"{8:032b}" + "00111" + "0010" + "0011" + "0111" + "1111" + "000111" + "00000000" * 4 + "11111111" * 4
    data = [
        int(literal.ljust(-(-len(literal) // 8) * 8, "0")[place : place + 8], 2) for place in range(0, len(literal), 8)
    ]
    assert decode_brush(data, 1, 2, where="").tolist() == [[False, True]]


def test_long_runs_of_brush_strokes() -> None:
    pixels = np.zeros((300, 400), bool)
    pixels[100:250] = True
    assert (decode_brush(encode_brush(pixels), 300, 400, where="") == pixels).all()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"type": "brushlabels", "value": {"rle": [255] * 20, "brushlabels": ["a"]}}, "of 4294967295 values"),
        ({"type": "brushlabels", "value": {"rle": [0, 1], "brushlabels": ["a"]}}, "it is cut off"),
        ({"type": "brushlabels", "value": {"rle": [0, 999], "brushlabels": ["a"]}}, "cannot be decoded"),
        (
            {"type": "rectanglelabels", "value": {"x": "q", "y": 0, "width": 1, "rectanglelabels": ["a"]}},
            "is no number",
        ),
        ({"type": "polygonlabels", "value": {"points": [[0, 0]], "polygonlabels": ["a"]}}, "no polygon"),
        ({"type": "polygonlabels", "value": {"points": [3], "polygonlabels": ["a"]}}, "no list of x and y"),
        ({"type": "choices", "value": {"choices": [3]}}, "no list of names"),
        ({"type": "choices"}, "has no value"),
    ],
)
def test_bad_results_of_label_studio_are_refused(tmp_path: Path, result: dict[str, Any], message: str) -> None:
    with pytest.raises(FovealError, match=message):
        read_tasks(tmp_path, task(result))


def test_other_kinds_of_results_are_counted(tmp_path: Path) -> None:
    tasks = task({"type": "keypointlabels", "value": {"x": 1, "y": 2, "keypointlabels": ["a"]}})
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    assert read_annotations(tmp_path / "export.json").notes == (
        "1 results are of kinds that are left out: keypointlabels",
    )


# CVAT

END = "</image></annotations>"
HEAD = "<annotations><version>1.1</version><meta><task><labels><label><name>cat</name></label></labels>"
IMAGE = '</task></meta><image id="0" name="a.png" width="7" height="5">'


def read_xml(folder: Path, text: str, images: ImageSet | None = None) -> AnnotatedSet:
    (folder / "annotations.xml").write_text(text)
    return read_annotations(folder, images=images).annotated


def test_shapes_of_cvat(tmp_path: Path) -> None:
    shapes = (
        '<polygon label="cat" points="1,1;4,1;4,3;1,3" occluded="0"/>'
        '<mask label="cat" rle="1, 2, 1" left="2" top="1" width="2" height="2"/>'
        '<box label="cat" xtl="0.5" ytl="1" xbr="3" ybr="2"><attribute name="state">odd</attribute></box>'
        '<tag label="cat"/><polyline label="cat" points="1,1;2,2"/>'
    )
    found = read_xml(tmp_path, f"{HEAD}{IMAGE}{shapes}</image></annotations>")
    polygon, mask, box, tag = found.annotations
    square, runs = np.zeros((5, 7), bool), np.zeros((5, 7), bool)
    square[1:3, 1:4] = True
    runs[1, 3] = runs[2, 2] = True
    assert (polygon.mask, mask.mask) == (Mask.of(square), Mask.of(runs))
    assert (box.box, box.state) == (Box(0.5, 1, 2.5, 1), "accepted")
    assert tag.box is tag.mask is None


def test_a_turned_box_of_cvat_becomes_pixels(tmp_path: Path) -> None:
    """A quarter around its middle: 4 x 2 pixels become 2 x 4."""
    box = '<box label="cat" xtl="1" ytl="1" xbr="5" ybr="3" rotation="90"/>'
    (one,) = read_xml(tmp_path, f"{HEAD}{IMAGE}{box}{END}").annotations
    expected = np.zeros((5, 7), bool)
    expected[0:4, 2:4] = True
    assert (one.box, one.mask) == (None, Mask.of(expected))


def test_attributes_that_a_person_left_empty_say_nothing(tmp_path: Path) -> None:
    """CVAT gives all that our labels declare to what is drawn there, empty."""
    empty = "".join(f'<attribute name="{name}"></attribute>' for name in ("state", "source", "track_id", "score"))
    box = f'<box label="cat" xtl="1" ytl="1" xbr="5" ybr="3">{empty}<attribute name="breed">tabby</attribute></box>'
    (tmp_path / "annotations.xml").write_text(f"{HEAD}{IMAGE}{box}{END}")
    found = read_annotations(tmp_path)
    (one,) = found.annotated.annotations
    assert (one.state, one.source, one.track, one.score) == ("accepted", "imported", None, None)
    assert found.notes == ("attributes of annotations are left out: breed (1)",)


def test_blanks_around_a_class_are_kept_by_cvat(tmp_path: Path) -> None:
    annotated = AnnotatedSet((" cat ",), (AnnotatedImage("a.png", 7, 5),), (Annotation("a.png", " cat "),))
    write_annotations(annotated, tmp_path / "out", format="cvat")
    assert read_annotations(tmp_path / "out").annotated.classes == (" cat ",)


def test_tracks_of_several_tasks_of_cvat_are_refused(tmp_path: Path, photographs: Path) -> None:
    tasks = "<meta><project><tasks><task/><task/></tasks></project></meta>"
    with pytest.raises(FovealError, match="tracks of several tasks"):
        read_xml(tmp_path, f'<annotations>{tasks}<track id="0" label="cat"/></annotations>', ImageSet.open(photographs))


def test_tracks_of_cvat_are_annotations_of_frames(tmp_path: Path, photographs: Path) -> None:
    track = (
        "<original_size><width>7</width><height>5</height></original_size></task></meta>"
        '<track id="3" label="cat"><box frame="0" outside="0" xtl="0" ytl="0" xbr="2" ybr="2"/>'
        '<box frame="1" outside="1" xtl="0" ytl="0" xbr="2" ybr="2"/></track></annotations>'
    )
    images = ImageSet.open(photographs)
    (one,) = read_xml(tmp_path, HEAD + track, images).annotations
    assert (one.image, one.track, one.box) == ("a.png", "3", Box(0, 0, 2, 2))
    with pytest.raises(FovealError, match="give the image set of the frames"):
        read_xml(tmp_path, HEAD + track)
    with pytest.raises(FovealError, match="frame 7 is annotated, and the image set has 2"):
        read_xml(tmp_path, HEAD + track.replace('frame="0"', 'frame="7"'), images)


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]><annotations>&c;</annotations>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "declares a document type"),
        ("<annotations>", "is no XML"),
        ('<?xml version="1.0" encoding="big5"?><annotations/>', "is no XML"),
        ('<?xml version="1.0" encoding="none"?><annotations/>', "is no XML"),
        ("<other/>", "its root is <other>"),
        (f'{HEAD}{IMAGE}<tag label="dog"/></image></annotations>', "label 'dog', which the file does not list"),
        (f"{HEAD}{IMAGE}<tag/></image></annotations>", "<tag> has no label"),
        (
            f'{HEAD}{IMAGE}<box label="cat" xtl="nan" ytl="0" xbr="1" ybr="1"/>{END}',
            "nan is not finite",
        ),
        (f'{HEAD}{IMAGE}<box label="cat" xtl="3" ytl="0" xbr="1" ybr="1"/></image></annotations>', "is no box"),
        (
            f'{HEAD}{IMAGE}<mask label="cat" rle="4" left="6" top="1" width="2" height="2"/>{END}',
            "a mask that leaves the picture of 7 x 5",
        ),
        (
            f'{HEAD}{IMAGE}<mask label="cat" rle="9999999" left="1" top="1" width="2" height="2"/>{END}',
            "its runs are not those of a mask of 2 x 2 pixels",
        ),
        (
            f"{HEAD}{IMAGE.replace('a.png', '../../a.png')}</image></annotations>",
            "no path of a picture within a folder",
        ),
        (
            f"{HEAD}{IMAGE.replace('7', '999999').replace('5', '999999')}</image></annotations>",
            "999999 x 999999 pixels",
        ),
        (f"{HEAD}{IMAGE}</image>{IMAGE[14:]}</image></annotations>", "is there twice"),
    ],
)
def test_bad_files_of_cvat_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        read_xml(tmp_path, text)


def test_cvat_declares_the_attributes_that_it_uses(annotated: AnnotatedSet, tmp_path: Path) -> None:
    write_annotations(annotated, tmp_path / "out", format="cvat", states=ALL)
    root = ElementTree.parse(tmp_path / "out/annotations.xml").getroot()
    declared = {one.text for one in root.iterfind(".//labels/label/attributes/attribute/name")}
    used = {one.get("name") for one in root.iterfind("image/*/attribute")}
    assert declared == used == {"state", "source", "track_id", "score"}


# FiftyOne


def test_fields_of_fiftyone_have_to_be_named_where_there_are_several(annotated: AnnotatedSet, tmp_path: Path) -> None:
    write_annotations(annotated, tmp_path / "out", format="fiftyone")
    path = tmp_path / "out/samples.json"
    path.write_text(path.read_text().replace('"labels"', '"truth"'))
    with pytest.raises(FovealError, match="has labels in detections, truth; name the fields"):
        read_annotations(tmp_path / "out")
    found = read_annotations(tmp_path / "out", format="fiftyone", fields=["truth"]).annotated
    assert found.annotations == (annotated.annotations[2],)
    with pytest.raises(FovealError, match="no labels in 'truht'; did you mean 'truth'"):
        read_annotations(tmp_path / "out", format="fiftyone", fields=["truht"])


def read_samples(folder: Path, **sample: Any) -> AnnotatedSet:
    whole = {"filepath": "data/a.png", "metadata": {"width": 7, "height": 5}, **sample}
    (folder / "samples.json").write_text(json.dumps({"samples": [whole]}))
    return read_annotations(folder).annotated


def detection(mask: bytes | None = None, *, box: tuple[float, ...] = (0, 0, 1, 1)) -> dict[str, Any]:
    more = {} if mask is None else {"mask": {"$binary": {"base64": base64.b64encode(zlib.compress(mask)).decode()}}}
    return {"_cls": "Detection", "label": "cat", "bounding_box": list(box), **more}


def saved_array(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


ARRAY = saved_array(np.ones((5, 7), bool))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"truth": detection(b"none")}, "a mask that cannot be unpacked"),
        ({"truth": detection(b"PK\x05\x06" + b"\0" * 18)}, "a mask that cannot be unpacked"),
        ({"truth": detection(ARRAY.replace(b"(5, 7)", b"(5, 9**9)"))}, "a mask that cannot be unpacked"),
        ({"truth": detection(saved_array(np.ones((5, 8), bool)).replace(b"(5, 8)", b"(5, 7)"))}, "and 40 bytes"),
        ({"truth": detection(ARRAY.replace(b"(5, 7)", b"(-1, -35)"))}, "a mask "),
        ({"truth": detection(saved_array(np.ones((5, 7))))}, "it must be"),
        ({"truth": detection(ARRAY, box=(0, 0, 1e308, 1))}, "too large for anything"),
        ({"truth": detection(ARRAY, box=(0, 0, 1.5, 1))}, "a mask that leaves the picture"),
        ({"truth": detection(), "metadata": "x"}, "sample 1: metadata has no width"),
        ({"truth": detection(), "metadata": {"width": "7", "height": 5}}, "which is of another kind"),
        ({"truth": {"_cls": "Polyline", "label": "a", "closed": True, "points": []}}, "without an outline"),
        ({"truth": {"_cls": "Polyline", "label": "a", "closed": True, "points": [[3]]}}, "no list of x and y"),
        ({"truth": {"_cls": "Polyline", "label": "a", "closed": True, "points": [[[1, 2, 3]]]}}, "no list of x and y"),
    ],
)
def test_bad_samples_of_fiftyone_are_refused(tmp_path: Path, sample: dict[str, Any], message: str) -> None:
    with pytest.raises(FovealError, match=message):
        read_samples(tmp_path, **sample)


def test_masks_of_fiftyone_in_files_are_missed_aloud(tmp_path: Path) -> None:
    sample = {"filepath": "a.png", "metadata": {"width": 7, "height": 5}, "x": detection() | {"mask_path": "/etc/x"}}
    (tmp_path / "samples.json").write_text(json.dumps({"samples": [sample]}))
    found = read_annotations(tmp_path)
    assert found.annotated.annotations[0].box == Box(0, 0, 7, 5)
    assert found.notes == ("1 masks are in files of their own, and only their boxes are read",)


def test_masks_of_fiftyone_lie_between_the_rounded_corners_of_their_box(tmp_path: Path) -> None:
    """A box from 1.5 to 7 of 7 pixels: its width, rounded by itself, would leave the picture."""
    (one,) = read_samples(tmp_path, truth=detection(ARRAY, box=(1.5 / 7, 0, 5.5 / 7, 1))).annotations
    expected = np.zeros((5, 7), bool)
    expected[:, 2:] = True
    assert one.mask == Mask.of(expected)
