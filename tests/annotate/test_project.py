"""The annotation project: what is written stays, can be taken back, and is shared by several windows."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from disks import make_read_only, mounted_disk, no_file_above
from PIL import Image

from foveal.annotate.database import FORMAT_VERSION
from foveal.annotate.project import Project
from foveal.annotate.queries import Filter
from foveal.annotate.records import Edit
from foveal.annotate.types import Annotation, Box, Mask, Prompt
from foveal.errors import FovealError, ProjectError
from foveal.images.imageset import ImageSet

WIDTH, HEIGHT = 7, 5


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * number, np.uint8)).save(folder / f"{number}.png")
    return ImageSet.open(folder)


@pytest.fixture
def project(tmp_path: Path, images: ImageSet) -> Project:
    made = Project.create(tmp_path / "project", images, key=b"fixed")
    made.add_class("cat")
    made.add_class("dog")
    return made


def mask(*, top: int = 1) -> Mask:
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[top:3, 2:6] = True
    return Mask.of(pixels)


def said(project: Project) -> list[tuple[str, str, str]]:
    return [(one.annotation.image, one.annotation.class_name, one.annotation.state) for one in project.annotations()]


def add_mask(project: Project, uri: str = "0.png", *, client: str = "a") -> tuple[int, int]:
    """Return id and revision."""
    written = project.write([Edit(Annotation(uri, "cat", mask()))], client=client)
    return written.ids[0], written.revision


def fill(project: Project, number: int) -> None:
    for _ in range(100):
        project.write([Edit(Annotation("1.png", "cat"))] * number)


def test_annotations_come_back_whole_after_closing(project: Project) -> None:
    prompts = (Prompt("point", ((2.5, 1.0),)), Prompt("stroke", ((1.0, 2.0), (3.0, 4.0)), positive=False, radius=1.5))
    wanted = Annotation("3.png", "cat", mask(), Box(2, 1, 4, 2), "unsure", "propagated", 0.25, None, "wren 1")
    written = project.write([Edit(wanted, prompts)])
    project.close()
    with Project.open(project.folder) as again:
        [found] = again.annotations("3.png")
        assert (found.annotation.mask, found.annotation.box) == (mask(), Box(2, 1, 4, 2))
        assert (found.annotation.state, found.annotation.source, found.annotation.score) == (
            "unsure",
            "propagated",
            0.25,
        )
        assert (found.annotation.id, found.annotation.track) == (written.ids[0], "wren 1")
        assert found.prompts == prompts
        assert again.image_set.hash == ImageSet.open(project.folder.parent / "photos").hash


def test_a_label_replaces_labels_and_proposals_and_leaves_masks_alone(project: Project) -> None:
    add_mask(project)
    project.label("0.png", "cat")
    project.propose([Annotation(f"{i}.png", "dog", state="proposed", source="propagated", score=0.5) for i in range(3)])
    project.label("0.png", "dog")
    project.label("1.png", "dog")
    found = [
        (one.annotation.image, one.annotation.source, one.annotation.mask is None) for one in project.annotations()
    ]
    assert found == [
        ("0.png", "user", False),
        ("0.png", "user", True),
        ("1.png", "propagated", True),  # the proposal, accepted
        ("2.png", "propagated", True),
    ]
    assert said(project)[1:] == [
        ("0.png", "dog", "accepted"),
        ("1.png", "dog", "accepted"),
        ("2.png", "dog", "proposed"),
    ]
    project.label("0.png", None)
    assert ("0.png", "dog", "accepted") not in said(project)


def test_nothing_that_was_decided_is_proposed_again(project: Project) -> None:
    project.label("0.png", "cat")
    project.write([Edit(Annotation("1.png", "dog", state="rejected", source="propagated"))], states={"2.png": "done"})
    proposals = [Annotation(f"{i}.png", "dog", state="proposed", source="propagated") for i in range(5)]
    assert project.propose(proposals).left == 3
    assert project.propose(proposals[:4]).left == 3  # in place of the earlier ones
    assert said(project) == [
        ("0.png", "cat", "accepted"),
        ("1.png", "dog", "rejected"),
        ("3.png", "dog", "proposed"),
    ]
    with pytest.raises(ProjectError, match=r"a proposal for 0.png is 'accepted'; propose as 'proposed' or 'unsure'"):
        project.propose([Annotation("0.png", "cat")])


def test_each_client_undoes_its_own_steps_in_turn(project: Project) -> None:
    project.label("0.png", "cat", client="a")
    project.label("1.png", "cat", client="b")
    project.label("2.png", "dog", client="a")
    assert project.can(client="a") == ("label 2.png 'dog'", None)
    project.undo(client="a")
    project.undo(client="a")
    assert said(project) == [("1.png", "cat", "accepted")]
    assert project.can(client="a") == (None, "label 0.png 'cat'")
    project.redo(client="a")
    assert said(project) == [("0.png", "cat", "accepted"), ("1.png", "cat", "accepted")]
    project.redo(client="a")
    assert ("2.png", "dog", "accepted") in said(project)
    assert project.redo(client="a") is None
    project.undo(client="a")
    project.label("3.png", "cat", client="a")
    assert project.redo(client="a") is None  # another step came after
    for _ in range(2):
        project.undo(client="a")
    assert project.undo(client="a") is None
    assert said(project) == [("1.png", "cat", "accepted")]


def test_undo_leaves_what_others_changed_since(project: Project) -> None:
    written = project.write([Edit(Annotation(f"{i}.png", "cat")) for i in range(2)], client="a")
    project.label("0.png", "dog", client="b")
    project.write(remove=[(written.ids[1], None)], client="b")
    project.undo(client="b")  # of the removal
    undone = project.undo(client="a")
    assert undone
    assert (undone.left, said(project)) == (1, [("0.png", "dog", "accepted")])


def test_an_older_revision_is_refused_and_both_versions_kept(project: Project) -> None:
    found, seen = add_mask(project)
    project.write([Edit(Annotation("0.png", "dog", mask(), id=found), seen=seen)], client="a")
    second = Annotation("0.png", "cat", mask(top=2), id=found)
    written = project.write([Edit(second, seen=seen), Edit(Annotation("1.png", "cat"))], client="b")
    assert said(project) == [("0.png", "dog", "accepted"), ("1.png", "cat", "accepted")]
    [conflict] = written.conflicts
    assert conflict.words == (
        "0.png was changed twice at once: first it is a mask of 'dog', accepted, then a mask of 'cat', accepted; both "
        "are kept, choose one"
    )
    project.close()
    with Project.open(project.folder) as again:
        [kept] = again.conflicts()
        assert kept.wanted
        assert kept.wanted.annotation == second
        again.settle(kept.id, "wanted", client="b")
        assert again.annotations("0.png")[0].annotation == second
        assert again.conflicts() == ()
        with pytest.raises(ProjectError, match=r"there is no conflict 1; it was settled already"):
            again.settle(kept.id, "stored")


def test_a_removal_and_a_change_of_the_same_meet(project: Project) -> None:
    found, seen = add_mask(project)
    project.write(remove=[(found, seen)], client="a")
    written = project.write([Edit(Annotation("0.png", "dog", mask(), id=found), seen=seen)], client="b")
    assert "first it is removed, then a mask of 'dog'" in written.conflicts[0].words
    project.settle(written.conflicts[0].id, "wanted")
    assert said(project) == [("0.png", "dog", "accepted")]
    [here] = project.annotations()
    project.write([Edit(Annotation("0.png", "cat", mask(), id=here.annotation.id))], client="a")
    late = project.write(remove=[(here.annotation.id or 0, here.revision)], client="b")
    assert said(project) == [("0.png", "cat", "accepted")]
    project.settle(late.conflicts[0].id, "stored")
    assert (said(project), project.conflicts()) == ([("0.png", "cat", "accepted")], ())


def test_the_same_answer_in_two_windows_is_no_conflict(project: Project) -> None:
    project.label("0.png", "cat", seen=0, client="a")
    assert project.label("0.png", "cat", seen=0, client="b").conflicts == ()
    [conflict] = project.label("0.png", "dog", seen=0, client="b").conflicts
    assert said(project) == [("0.png", "cat", "accepted")]
    project.settle(conflict.id, "wanted")
    assert said(project) == [("0.png", "dog", "accepted")]


def test_a_label_chosen_late_takes_the_place_of_the_one_that_is_there_by_then(project: Project) -> None:
    project.label("0.png", "cat", client="a")
    [conflict] = project.label("0.png", "dog", seen=0, client="b").conflicts
    project.label("0.png", None, client="a")
    project.label("0.png", "cat", client="a")
    project.settle(conflict.id, "wanted", client="b")
    assert said(project) == [("0.png", "dog", "accepted")]


def test_a_request_sent_twice_is_done_once(project: Project) -> None:
    first = project.write([Edit(Annotation("0.png", "cat"))], request="r1")
    assert project.write([Edit(Annotation("0.png", "cat"))], request="r1") == first
    assert len(project.annotations()) == 1
    undone = project.undo(request="r2")
    assert undone
    again = project.undo(request="r2")
    assert again
    assert (again.revision, [one.name for one in project.classes()]) == (undone.revision, ["cat", "dog"])


def test_windows_follow_each_other(project: Project) -> None:
    start = project.revision
    written = project.write([Edit(Annotation("4.png", "cat"))], states={"2.png": "done"})
    changes = project.changes_since(start)
    assert (changes.revision, changes.images, changes.classes) == (written.revision, (2, 4), False)
    assert [one.annotation.image for one in changes.records] == ["4.png"]
    project.undo()
    changes = project.changes_since(written.revision)
    assert (changes.removed, changes.images, changes.records) == (written.ids, (2, 4), ())
    project.rename_class("cat", "lynx")
    assert project.changes_since(changes.revision).classes
    with pytest.raises(ProjectError, match=r"revision=99; the project is at \d+: read it anew"):
        project.changes_since(99)


def test_classes_change_while_they_are_used(project: Project) -> None:
    found, seen = add_mask(project)
    project.rename_class("cat", "lynx", client="a")
    project.write([Edit(Annotation("0.png", "cat", mask(top=2), id=found), seen=seen)], client="b")  # the old name
    project.label("1.png", "dog")
    assert said(project) == [("0.png", "lynx", "accepted"), ("1.png", "dog", "accepted")]
    project.merge_class("dog", "lynx", client="a")
    project.label("2.png", "dog", client="b")
    assert [(one.name, one.num_annotations) for one in project.classes()] == [("lynx", 3)]
    project.undo(client="a")
    assert said(project) == [("0.png", "lynx", "accepted"), ("1.png", "dog", "accepted"), ("2.png", "lynx", "accepted")]
    project.redo(client="a")
    with pytest.raises(ProjectError, match="3 accepted annotations are of the class 'lynx'; merge it"):
        project.remove_class("lynx")
    project.remove_class("lynx", with_annotations=True, client="a")
    assert (said(project), project.classes()) == ([], ())
    project.undo(client="a")
    assert {state for *_, state in said(project)} == {"accepted"}
    assert len(said(project)) == 3


def test_every_name_that_a_class_had_still_means_it(project: Project) -> None:
    project.rename_class("cat", "lynx", client="a")
    project.merge_class("lynx", "dog", client="b")
    project.label("0.png", "cat")
    project.undo(client="b")
    project.label("1.png", "cat")
    project.rename_class("cat", "puma", client="b")  # by a window that has not seen "lynx"
    project.label("2.png", "lynx")
    project.undo(client="b")
    project.label("3.png", "puma")
    assert [name for _, name, _ in said(project)] == ["dog", "lynx", "lynx", "lynx"]
    project.add_class("\u00e9lan")
    project.label("4.png", "e\u0301lan")
    assert said(project)[-1] == ("4.png", "\u00e9lan", "accepted")
    project.remove_class("lynx", with_annotations=True)
    with pytest.raises(ProjectError, match=r"has no class 'puma'\. It has dog"):
        project.label("3.png", "puma")


def test_classes_that_become_one_leave_an_image_one_label(project: Project) -> None:
    project.write([Edit(Annotation("0.png", "cat")), Edit(Annotation("0.png", "dog", state="rejected"))])
    project.write([Edit(Annotation("1.png", "cat", state="unsure")), Edit(Annotation("1.png", "dog"))])
    add_mask(project, "1.png")
    project.merge_class("cat", "dog")
    accepted = [("0.png", "dog", "accepted"), ("1.png", "dog", "accepted"), ("1.png", "dog", "accepted")]
    assert said(project) == accepted
    project.undo()
    assert len(said(project)) == 5


def test_undo_keeps_a_class_that_others_use(project: Project) -> None:
    project.add_class("owl", client="a")
    project.label("0.png", "owl", client="b")
    undone = project.undo(client="a")
    assert undone
    assert (undone.left, said(project)) == (1, [("0.png", "owl", "accepted")])


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda p: p.label("0.png", "cats"), "has no class 'cats'; did you mean 'cat'?"),
        (lambda p: p.label("9.png", "cat"), "has no image '9.png'"),
        (lambda p: p.add_class("cat"), "has a class 'cat' already"),
        (lambda p: p.add_class("a\nb"), r"'a\\nb' cannot be the name of a class"),
        (lambda p: p.add_class("owl", "red"), "'red' is no colour; write it as #rrggbb"),
        (lambda p: p.rename_class("cat", "dog"), "merge 'cat' into it"),
        (lambda p: p.merge_class("cat", "cat"), "are one class; name two"),
        (lambda p: p.write(states={"0.png": "closed"}), "state='closed'; give one of open, done, skipped"),
        (
            lambda p: p.write([Edit(Annotation("0.png", "cat", state="maybe"))]),
            "'cat' on 0.png: state 'maybe', .* allowed are proposed",
        ),
        (lambda p: p.write([Edit(Annotation("0.png", "cat", score=float("nan")))]), "'cat' on 0.png: a score of nan"),
        (
            lambda p: p.write([Edit(Annotation("0.png", "cat", Mask.of(np.ones((WIDTH, HEIGHT), bool))))]),
            "the mask of 'cat' has 5 x 7 pixels, its picture 0.png 7 x 5",
        ),
        (
            lambda p: p.write([Edit(Annotation("0.png", "cat", box=Box(3, 1, 9, 1)))]),
            "a box at x=3, y=1 of 9 x 1 pixels on 0.png of 7 x 5",
        ),
        (
            lambda p: p.write([Edit(Annotation("0.png", "cat", mask()), (Prompt("point", ((float("inf"), 0),)),))]),
            "a point of 1 points and radius 0.0",
        ),
        (lambda p: p.page(-1), "start=-1, count=200"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(project: Project, do, words: str) -> None:  # type: ignore[no-untyped-def]
    before = project.revision
    with pytest.raises(ProjectError, match=words):
        do(project)
    assert (project.revision, said(project)) == (before, [])


def test_pages_hold_what_a_filter_leaves(project: Project) -> None:
    add_mask(project, "4.png")
    project.label("2.png", "dog")
    project.propose([Annotation("5.png", "dog", state="unsure", source="propagated", score=0.4)])
    project.write(states={"3.png": "done"})
    assert [one.index for one in project.page(2, 3)] == [2, 3, 4]
    assert [one.uri for one in project.page(chosen=Filter(class_name="dog"))] == ["2.png", "5.png"]
    assert [one.uri for one in project.page(1, 9, chosen=Filter(class_name="dog"))] == ["5.png"]
    unsure = Filter(annotation_states=("unsure",))
    assert (project.count(unsure), project.count(), project.count(Filter("done"))) == (1, 6, 1)
    [image] = project.images([4])
    assert (image.num_marks, image.num_undecided, image.labels) == (1, 0, ())
    assert project.page(5, 1)[0].labels[0].annotation.score == 0.4
    labels = project.labels()
    assert (labels.index.tolist(), labels.names) == ([2], ("dog",))
    assert labels.held_out.tolist() == [project.images([2])[0].held_out]


def test_held_out_images_depend_on_the_key_alone(tmp_path: Path, images: ImageSet) -> None:
    def held_out(name: str, key: bytes) -> list[bool]:
        with Project.create(tmp_path / name, images, key=key, held_out_share=0.5) as made:
            return [one.held_out for one in made.page()]

    assert held_out("one", b"k") == held_out("two", b"k")
    assert len({tuple(held_out(f"of {i}", bytes([i]))) for i in range(8)}) > 1


def test_a_folder_in_use_and_a_list_with_repeats_are_refused(tmp_path: Path, images: ImageSet) -> None:
    with pytest.raises(ProjectError, match="photos already exists and is not empty"):
        Project.create(tmp_path / "photos", images)
    with pytest.raises(ProjectError, match=r"1.png is listed twice; list each image once"):
        Project.create(tmp_path / "new", images.subset([0, 1, 1]))
    with pytest.raises(ProjectError, match=r"held_out_share=1.5"):
        Project.create(tmp_path / "new", images, held_out_share=1.5)
    assert not (tmp_path / "new").exists()


def test_what_is_no_project_of_this_format_is_refused(tmp_path: Path, project: Project) -> None:
    with pytest.raises(ProjectError, match=r"photos is no annotation project, it has no project.sqlite"):
        Project.open(tmp_path / "photos")
    project.close()
    path = project.folder / "project.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION + 1}")
    connection.close()
    with pytest.raises(ProjectError, match=rf"has the format {FORMAT_VERSION + 1}, and this foveal reads"):
        Project.open(project.folder)
    path.unlink()
    sqlite3.connect(path).close()
    path.write_bytes(b"")
    with pytest.raises(ProjectError, match="is an SQLite database, and not of an annotation project"):
        Project.open(project.folder)
    path.write_bytes(b"A page of text, which is long enough to be read as a header. " * 50)
    with pytest.raises(ProjectError, match="it is no SQLite database; give the folder of a project"):
        Project.open(project.folder)


def test_a_closed_project_says_so(project: Project) -> None:
    project.close()
    with pytest.raises(ProjectError, match=r"project is closed; open it again"):
        project.classes()


def test_an_image_that_is_gone_keeps_its_annotations_and_takes_no_new_mask(project: Project) -> None:
    project.label("0.png", "cat")
    (project.image_set.root / "0.png").unlink()
    with pytest.raises(ProjectError, match=r"the size of 0.png is not known, since it cannot be read"):
        add_mask(project)
    assert said(project) == [("0.png", "cat", "accepted")]


def test_a_picture_of_another_size_takes_masks_once_those_of_the_old_one_are_gone(project: Project) -> None:
    found, _ = add_mask(project)
    assert project.sizes(["0.png", "1.png"]) == {"0.png": (WIDTH, HEIGHT), "1.png": (WIDTH, HEIGHT)}
    pixels = np.zeros((11, 9), bool)
    pixels[2:5, 3:5] = True
    for uri in ("0.png", "1.png"):
        Image.new("RGB", (9, 11)).save(project.folder.parent / "photos" / uri)
    new = [Edit(Annotation(uri, "cat", Mask.of(pixels))) for uri in ("0.png", "1.png")]
    with pytest.raises(ProjectError, match=r"0.png 7 x 5; .* put it back or remove its masks"):
        project.write(new)
    assert (project.size("0.png"), project.size("1.png")) == ((WIDTH, HEIGHT), (9, 11))
    project.write(remove=[(found, None)])
    project.write(new)
    assert len(said(project)) == 2


def test_many_threads_and_another_process_lose_nothing(project: Project) -> None:
    code = (
        "import sys; from foveal.annotate.project import Project\n"
        "with Project.open(sys.argv[1]) as project:\n"
        "    for _ in range(20): project.write([__import__('foveal').annotate.records.Edit("
        "__import__('foveal').annotate.types.Annotation('1.png', 'dog'))])\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, project.folder], stderr=subprocess.PIPE)
    failed: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(10):
                project.write([Edit(Annotation("0.png", "cat"))])
        except FovealError as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    _, errors = other.communicate(timeout=300)
    assert (other.returncode, failed) == (0, []), errors
    assert len(project.annotations("0.png")) == 30
    assert len(project.annotations("1.png")) == 20


WRITER = """
import sys
from foveal.annotate.project import Project
from foveal.annotate.records import Edit
from foveal.annotate.types import Annotation
project = Project.open(sys.argv[1])
while True:
    written = project.write([Edit(Annotation(uri, "cat")) for uri in ("0.png", "1.png", "2.png")])
    print(written.revision, *written.ids, flush=True)
"""


def test_a_process_killed_in_mid_write_loses_nothing_that_was_said_to_be_kept(project: Project) -> None:
    project.close()
    child = subprocess.Popen([sys.executable, "-c", WRITER, project.folder], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    lines = [child.stdout.readline() for _ in range(20)]
    os.kill(child.pid, signal.SIGKILL)
    lines += child.stdout.read().splitlines()
    child.wait(30)
    child.stdout.close()
    said_to_be_kept = {int(one) for line in lines if len(line.split()) == 4 for one in line.split()[1:]}
    assert len(said_to_be_kept) >= 60
    with Project.open(project.folder) as again:
        there = {one.annotation.id for one in again.annotations()}
        assert said_to_be_kept <= there
        assert len(there) % 3 == 0  # a step is whole or absent
        with again._database.reading() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_full_disk_refuses_a_change_in_words_and_keeps_all_before(project: Project) -> None:
    project.label("0.png", "cat")
    limit = max(path.stat().st_size for path in project.folder.glob("project.sqlite*"))
    with no_file_above(limit), pytest.raises(ProjectError, match="this change is not kept, all before it are"):
        fill(project, 20)
    with no_file_above(1):
        assert project.size("5.png") == (WIDTH, HEIGHT)  # what is only kept to be quicker hinders nobody
        assert project.sizes(["4.png"]) == {"4.png": (WIDTH, HEIGHT)}
    before = said(project)
    project.label("2.png", "dog")  # there is room again
    assert [one for one in said(project) if one[0] != "2.png"] == before
    assert ("0.png", "cat", "accepted") in before


def test_a_disk_without_room_or_rights_is_said(tmp_path: Path, images: ImageSet) -> None:
    with mounted_disk(tmp_path / "disk", size="1m") as disk:
        with Project.create(disk / "project", images) as made:
            made.add_class("cat")
            with pytest.raises(ProjectError, match="the disk is full; free space"):
                fill(made, 200)
            assert len(made.annotations()) % 200 == 0
        make_read_only(disk)
        with pytest.raises(ProjectError, match="it is read-only; give write permission"):
            Project.open(disk / "project")
