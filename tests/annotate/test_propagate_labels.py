"""Labels of some images carried to the others, and where they are read from."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from foveal.annotate.given import read_given
from foveal.annotate.project import Project
from foveal.annotate.propagate_labels import propagate_labels
from foveal.annotate.propagated import check_project, check_target, write_project, write_table
from foveal.annotate.types import AnnotatedSet, Annotation, Mask
from foveal.errors import FovealError
from foveal.images.imageset import ImageSet


def two_groups(count: int, *, spread: float) -> tuple[np.ndarray, list[str], list[str]]:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, count)
    features = np.eye(2, 7)[truth] + spread * generator.normal(size=(count, 7))
    return features.astype(np.float32), [f"{row}.jpg" for row in range(count)], ["ab"[number] for number in truth]


def test_clear_groups_are_proposed_and_what_lies_between_them_is_unsure() -> None:
    features, uris, truth = two_groups(300, spread=0.25)
    features[-1] = np.eye(2, 7).mean(axis=0)
    labels = dict(zip(uris[:150], truth[:150], strict=True))
    found = propagate_labels(features, uris, labels)
    assert [one.image for one in found.annotations] == uris[150:]
    assert found.annotations[-1].state == "unsure"
    proposed = [one for one in found.annotations if one.state == "proposed"]
    assert len(proposed) == found.num_proposed > 100
    right = [one.class_name == truth[uris.index(one.image)] for one in proposed]
    assert np.mean(right) >= 0.9
    assert all(one.source == "propagated" and one.score is not None and one.score > 0.5 for one in proposed)


def test_only_images_that_were_held_out_measure() -> None:
    features, uris, truth = two_groups(100, spread=0.1)
    labels = dict(zip(uris[:80], truth[:80], strict=True))
    assert propagate_labels(features, uris, labels).num_proposed == 20
    few = propagate_labels(features, uris, labels, held_out=uris[:20])
    assert (few.num_proposed, few.fit.calibration.num_held_out) == (0, 20)
    assert "which takes 49" in few.fit.calibration.summary
    assert all(one.score is None for one in propagate_labels(features, uris, labels, held_out=[]).annotations)


def test_labels_of_other_images_and_a_set_that_contradicts_itself_are_refused() -> None:
    features, uris, truth = two_groups(4, spread=0.1)
    with pytest.raises(FovealError, match=r"1 labelled images have no features, first x\.jpg"):
        propagate_labels(features, uris, {"x.jpg": "a"})
    with pytest.raises(FovealError, match="3 uris for 4 rows"):
        propagate_labels(features, uris[:3], {})
    with pytest.raises(FovealError, match="1 images are listed twice"):
        propagate_labels(features, [*uris[:3], uris[0]], {})
    with pytest.raises(FovealError, match=r"precision=1"):
        propagate_labels(features, uris, dict(zip(uris, truth, strict=True)), precision=1)


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    for name in ("a", "deep/b", "c"):
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (7, 5)).save(path)
    return ImageSet.open(tmp_path / "photos")


def test_a_table_gives_labels_and_rows_without_one_say_nothing(images: ImageSet, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("label,uri,note\n007,a.jpg,x\n ,c.jpg,\ncat,deep/b.jpg,y\n")
    given = read_given(table, images)
    assert (given.kind, given.labels) == ("labels", {"a.jpg": "007", "deep/b.jpg": "cat"})
    pq.write_table(pa.table({"uri": ["a.jpg"], "label": [3]}), tmp_path / "labels.parquet")
    assert read_given(tmp_path / "labels.parquet", images).labels == {"a.jpg": "3"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("uri,class\na.jpg,x\n", "lacks the column label; it has uri, class"),
        ("uri,label\na.jpg,x\na.jpg,y\n", "a.jpg has two labels in .*, 'x' and 'y'"),
        ("uri,label\nz.jpg,x\n", "lacks 1 images of .*, first z.jpg; its uris are like a.jpg"),
        ("uri,label\na.jpg,\n", "no accepted labels or masks"),
        ("", "cannot be read as a table"),
        ('uri,label\na.jpg,x,"y\n', "cannot be read as a table"),
    ],
)
def test_a_table_that_cannot_teach_is_refused(images: ImageSet, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(FovealError, match=words):
        read_given(tmp_path / "labels.csv", images)


def test_mask_files_are_those_of_the_pictures_with_their_names(images: ImageSet, tmp_path: Path) -> None:
    masks = tmp_path / "brick"
    (masks / "deep").mkdir(parents=True)
    ids = np.zeros((5, 7), np.uint8)
    ids[1:3, 2:6] = 255
    Image.fromarray(ids).save(masks / "deep" / "b.png")
    Image.fromarray(0 * ids).save(masks / "a.png")
    given = read_given(masks, images)
    [one] = given.annotated.annotations
    assert (given.kind, one.image, one.class_name) == ("masks", "deep/b.jpg", "brick")
    assert one.mask is not None
    assert (one.mask.pixels() == (ids == 255)).all()
    assert given.complete == {"a.jpg", "deep/b.jpg"}
    ids[0, 0] = 2
    Image.fromarray(ids).save(masks / "a.png")
    assert [one.class_name for one in read_given(masks, images).annotated.annotations] == ["2"]  # 255 does not count
    (masks / "classes.txt").write_text("background\nfloor\nwall\n")
    assert [one.class_name for one in read_given(masks, images).annotated.annotations] == ["wall"]
    Image.fromarray(ids[:4]).save(masks / "c.png")
    with pytest.raises(FovealError, match=r"c\.png is of 7 x 4 pixels, and c.jpg of 7 x 5"):
        read_given(masks, images)
    (masks / "c.png").rename(masks / "d.png")
    with pytest.raises(FovealError, match=r"d\.png masks no picture of the image set"):
        read_given(masks, images)
    (masks / "d.png").unlink()
    (masks / "classes.txt").write_bytes(b"B\xe4r")
    with pytest.raises(FovealError, match=r"classes.txt cannot be read .* in UTF-8"):
        read_given(masks, images)
    Image.new("RGB", (7, 5)).save(images.root / "a.webp")
    with pytest.raises(FovealError, match=r"a.png masks a.jpg or a.webp; give pictures that have masks names"):
        read_given(masks, ImageSet.open(images.root))


def test_a_project_teaches_what_was_accepted_and_takes_proposals_again(images: ImageSet, tmp_path: Path) -> None:
    with Project.create(tmp_path / "birds", images) as project:
        project.add_class("wren")
        project.add_class("owl")
        project.label("a.jpg", "wren")
        project.propose([Annotation("c.jpg", "owl", state="proposed", source="propagated")])
    given = read_given(tmp_path / "birds", images)
    assert given.labels == {"a.jpg": "wren"}
    found = [
        Annotation("a.jpg", "owl", state="proposed", source="propagated"),
        Annotation("c.jpg", "wren", state="unsure", source="propagated", score=0.25),
    ]
    assert write_project(found, given, images, tmp_path / "birds") == 1
    with Project.open(tmp_path / "birds") as project:
        states = [
            (one.annotation.image, one.annotation.class_name, one.annotation.state) for one in project.annotations()
        ]
    assert states == [("a.jpg", "wren", "accepted"), ("c.jpg", "wren", "unsure")]
    write_table(found, given, tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_text().splitlines() == [
        "uri,label,state,score",
        "a.jpg,wren,accepted,",
        "a.jpg,owl,proposed,",
        "c.jpg,wren,unsure,0.2500",
    ]


def test_what_people_have_corrected_in_a_project_is_not_given_again(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("uri,label\na.jpg,wren\nc.jpg,owl\n")
    given = read_given(tmp_path / "labels.csv", images)
    for _ in range(2):
        write_project([], given, images, tmp_path / "birds")
        with Project.open(tmp_path / "birds") as project:
            project.label("a.jpg", "owl")
    with Project.open(tmp_path / "birds") as project:
        found = [(one.annotation.image, one.annotation.class_name) for one in project.annotations()]
    assert found == [("a.jpg", "owl"), ("c.jpg", "owl")]


def test_a_class_renamed_meanwhile_keeps_its_new_name(images: ImageSet, tmp_path: Path) -> None:
    with Project.create(tmp_path / "birds", images) as project:
        project.add_class("wren")
        project.label("a.jpg", "wren")
    given = read_given(tmp_path / "birds", images)
    with Project.open(tmp_path / "birds") as project:
        project.rename_class("wren", "jenny wren")
    write_project([Annotation("c.jpg", "wren", state="unsure", source="propagated")], given, images, tmp_path / "birds")
    with Project.open(tmp_path / "birds") as project:
        assert [one.name for one in project.classes()] == ["jenny wren"]
        assert [one.annotation.image for one in project.annotations()] == ["a.jpg", "c.jpg"]


def test_a_project_of_other_images_is_refused_first(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("uri,label\na.jpg,wren\n")
    Project.create(tmp_path / "birds", images.subset([0])).close()
    with pytest.raises(FovealError, match=r"lacks 2 of the 3 images, first c.jpg; its uris are like a.jpg"):
        check_project(tmp_path / "birds", images, read_given(tmp_path / "labels.csv", images))


def test_labels_beside_masks_need_a_choice(images: ImageSet, tmp_path: Path) -> None:
    mask = Mask.of(np.ones((5, 7), bool))
    annotations = (Annotation("a.jpg", "wren"), Annotation("c.jpg", "owl", mask))
    with Project.create(tmp_path / "birds", images) as project:
        project.add(AnnotatedSet(("wren", "owl"), (), annotations))
    with pytest.raises(FovealError, match="has labels and masks; say which"):
        read_given(tmp_path / "birds", images)
    assert read_given(tmp_path / "birds", images, kind="labels").labels == {"a.jpg": "wren"}
    assert read_given(tmp_path / "birds", images, kind="masks").annotated.classes == ("owl",)


def test_a_target_in_use_or_unknown_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FovealError, match="not empty"):
        check_target(tmp_path, "project")
    with pytest.raises(FovealError, match="coko is not known; did you mean 'coco'"):
        check_target(tmp_path / "new", "coko")
    with pytest.raises(FovealError, match="is a folder; give a file"):
        check_target(tmp_path, "csv")
