"""Annotations into projects and out of them, and what heads make of what is saved."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from disks import no_file_above
from PIL import Image

from foveal.annotate.project import Project
from foveal.annotate.records import Edit
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, Box, Mask
from foveal.errors import FovealError, ImageSetError, ProjectError
from foveal.evaluate.layouts.classification import open_classification
from foveal.evaluate.layouts.dense import open_masks
from foveal.features.labels import split_by_uri
from foveal.images.imageset import ImageSet
from foveal.tasks.segment import IGNORED

WIDTH, HEIGHT = 7, 5


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "photos" / "garden"
    folder.mkdir(parents=True)
    for number in range(8):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 30 * number, np.uint8)).save(folder / f"{number}.png")
    made = Project.create(tmp_path / "project", ImageSet.open(tmp_path / "photos"), key=b"a", held_out_share=0.4)
    made.add_class("cat")
    made.add_class("dog")
    return made


def uri(number: int) -> str:
    return f"garden/{number}.png"


def rectangle(rows: slice, columns: slice) -> Mask:
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[rows, columns] = True
    return Mask.of(pixels)


def annotated(*annotations: Annotation, size: tuple[int, int] = (WIDTH, HEIGHT)) -> AnnotatedSet:
    pictures = tuple(AnnotatedImage(name, *size) for name in sorted({one.image for one in annotations}))
    return AnnotatedSet(tuple(sorted({one.class_name for one in annotations})), pictures, annotations)


def test_a_set_goes_in_once_and_comes_out_as_it_was(project: Project) -> None:
    wanted = annotated(
        Annotation(uri(0), "cat", source="imported"),
        Annotation(uri(0), "owl", rectangle(slice(1, 3), slice(0, 4)), source="imported", score=0.5),
        Annotation(uri(2), "owl", box=Box(1, 1, 3, 2), source="imported", track="7"),
    )
    assert (len(project.add(wanted).ids), project.add(wanted).left) == (3, 3)
    assert len(project.annotations()) == 3
    found = project.to_set()
    assert found.classes == ("cat", "dog", "owl")
    assert found.images == wanted.images
    assert [one.track for one in found.annotations] == [None, None, "7"]
    assert {(one.image, one.class_name, one.mask, one.box, one.score) for one in found.annotations} == {
        (one.image, one.class_name, one.mask, one.box, one.score) for one in wanted.annotations
    }
    project.undo()
    assert (project.annotations(), [one.name for one in project.classes()]) == ((), ["cat", "dog"])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (annotated(Annotation("else/1.png", "cat")), "1 annotated images are not in the project, first else/1.png"),
        (
            annotated(Annotation(uri(0), "cat", Mask.of(np.ones((4, 6), bool)))),
            "the mask of 'cat' has 6 x 4 pixels, its picture garden/0.png 7 x 5",
        ),
        (
            annotated(Annotation(uri(0), "cat", box=Box(0, 0, 9, 9)), size=(70, 50)),
            "garden/0.png is annotated at 70 x 50 pixels, and the picture has 7 x 5",
        ),
        (annotated(Annotation(uri(0), "cat", Mask(HEIGHT, WIDTH, b"o"))), "'cat' on garden/0.png: run lengths"),
    ],
)
def test_a_set_that_does_not_fit_is_refused_and_nothing_added(
    project: Project, found: AnnotatedSet, words: str
) -> None:
    before = project.revision
    with pytest.raises(FovealError, match=words):
        project.add(found)
    assert (project.revision, project.annotations()) == (before, ())


def test_a_label_from_outside_answers_what_was_proposed(project: Project) -> None:
    [uri] = [one.uri for one in project.page(0, 1)]
    project.propose([Annotation(uri, "cat", state="proposed", source="propagated")])
    project.add(AnnotatedSet(("owl",), (), (Annotation(uri, "owl"),)))
    assert [(one.annotation.class_name, one.annotation.state) for one in project.annotations(uri)] == [
        ("owl", "accepted")
    ]


def test_labels_leave_as_an_image_set_that_is_split_as_the_project_is(project: Project, tmp_path: Path) -> None:
    for number in range(7):
        project.label(uri(number), ("cat", "dog")[number % 2])
    project.propose([Annotation(uri(7), "cat", state="unsure", source="propagated")])
    project.write([Edit(Annotation(uri(0), "dog"))])  # a second label
    saved = project.save_image_set(tmp_path / "saved", of="labels")
    images = ImageSet.open(tmp_path / "saved")
    assert (len(images), saved.num_images) == (6, 6)
    assert images.labels == ["dog", "cat", "dog", "cat", "dog", "cat"]
    assert saved.notes == ("1 images with several labels are left out, an image of a set has one: first garden/0.png",)
    data = open_classification(str(tmp_path / "saved"))
    held_out = {image.uri for image in project.page() if image.held_out}
    assert 0 < saved.num_held_out == len(data.test) < 6
    assert {data.test.uri(i) for i in range(len(data.test))} <= held_out
    assert not {data.train.uri(i) for i in range(len(data.train))} & held_out
    asked, _ = split_by_uri(images, share=0.5)
    assert open_classification(str(tmp_path / "saved"), split=0.5).train.hash == asked.hash


def test_masks_leave_as_files_that_dense_heads_read(project: Project, tmp_path: Path) -> None:
    for number in range(6):
        project.write([Edit(Annotation(uri(number), "cat", rectangle(slice(0, 4), slice(0, 5))))])
    project.write(
        [
            Edit(Annotation(uri(0), "dog", box=Box(1, 1, 2, 2))),  # smaller, and so on top
            Edit(Annotation(uri(0), "dog", rectangle(slice(3, 5), slice(4, 7)), state="unsure", source="propagated")),
            Edit(Annotation(uri(0), "cat", rectangle(slice(4, 5), slice(0, 2)), state="rejected")),
        ],
        states={uri(6): "done"},
    )
    project.save_image_set(tmp_path / "saved", of="masks")
    data = open_masks(tmp_path / "saved")
    assert data.classes == ["background", "cat", "dog"]
    assert len(data.train) + len(data.test) == 7
    masks = {pair.image.name: part.target(i) for part in (data.train, data.test) for i, pair in enumerate(part.pairs)}
    assert masks["0.png"].tolist() == [
        [1, 1, 1, 1, 1, 0, 0],
        [1, 2, 2, 1, 1, 0, 0],
        [1, 2, 2, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, IGNORED, IGNORED],
        [0, 0, 0, 0, IGNORED, IGNORED, IGNORED],
    ]
    assert not masks["6.png"].any()
    held_out = {Path(image.uri).name for image in project.page() if image.held_out}
    assert {pair.image.name for pair in data.test.pairs} == held_out & set(masks)


def test_saving_is_refused_before_anything_is_written(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="has no accepted masks yet; accept some"):
        project.save_image_set(tmp_path / "saved", of="masks")
    project.label(uri(0), "cat")
    with pytest.raises(ProjectError, match="photos already exists and is not empty"):
        project.save_image_set(tmp_path / "photos", of="labels")
    with no_file_above(100), pytest.raises(ProjectError, match=r"saved cannot be written \(.*\); check space"):
        project.save_image_set(tmp_path / "saved", of="labels")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "project"]
    project.save_image_set(tmp_path / "saved", of="labels")
    with pytest.raises(ImageSetError, match="saved is an image set without masks"):
        open_masks(tmp_path / "saved")


def test_images_that_are_gone_or_changed_are_told_and_keep_what_was_said(project: Project) -> None:
    for number in range(3):
        project.label(uri(number), "cat")
    assert project.images_now() == ((), ())
    root = project.image_set.root
    (root / uri(0)).unlink()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / uri(1))
    os.utime(root / uri(2), (1, 1))
    assert project.images_now() == ((uri(0),), (uri(1), uri(2)))
    assert len(project.annotations()) == 3
    found = project.to_set()
    assert [(one.uri, one.width, one.height) for one in found.images] == [
        (uri(0), 0, 0),
        (uri(1), 9, 9),
        (uri(2), WIDTH, HEIGHT),
    ]


def test_a_project_whose_images_were_moved_away_still_opens(project: Project, tmp_path: Path) -> None:
    project.label(uri(0), "cat")
    project.close()
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with Project.open(project.folder) as again:
        assert len(again.annotations()) == 1
        with pytest.raises(ImageSetError, match=r"were below .*photos, which does not exist"):
            again.images_now()
        card = project.folder / "images" / "imageset.json"
        card.write_text(json.dumps({**json.loads(card.read_text()), "root": str(tmp_path / "elsewhere")}))
        assert again.images_now() == ((), ())
