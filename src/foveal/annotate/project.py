"""The annotation project: a folder with an image set and all that was said about its images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from foveal.annotate import classes, proposals, queries, writing
from foveal.annotate.checks import Size, check_edit, check_one_of
from foveal.annotate.creation import DATABASE, IMAGES, create_folder
from foveal.annotate.database import Database
from foveal.annotate.journal import (
    Repeated,
    Step,
    Target,
    newest_revision,
    redo_target,
    step,
    step_of_request,
    undo_target,
)
from foveal.annotate.queries import Filter, Labels
from foveal.annotate.records import (
    Changes,
    Class,
    Conflict,
    Edit,
    ImageState,
    ProjectImage,
    Record,
    Written,
)
from foveal.annotate.types import Annotation, State
from foveal.errors import BadImageError, ImageSetError, ProjectError
from foveal.features.extract import Model
from foveal.features.origin import described
from foveal.images.decode import read_size
from foveal.images.imageset import ImageSet

HELD_OUT_SHARE = 0.2
_ANYBODY = "python"


class Project:
    """Images, classes, annotations and the log of all changes. Threads may share one, and processes one folder.

    Each change is one step, durable when the call returns. It has a revision, and the client that made it can undo it.

    Example:
        >>> project = Project.create("birds", ImageSet.open("photos/"))  # doctest: +SKIP
        >>> project.add_class("wren")  # doctest: +SKIP
        >>> project.label("garden/1.jpg", "wren")  # doctest: +SKIP
        >>> project.undo()  # doctest: +SKIP
    """

    def __init__(self, folder: Path, database: Database) -> None:
        """Take an open database; `create` and `open` make one."""
        self.folder, self._database = folder, database
        with database.reading() as connection:
            facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
            self.num_images: int = connection.execute("SELECT count(*) FROM images").fetchone()[0]
        self.model = {"name": facts["model_name"], "sha256": facts["model_sha256"]} if "model_name" in facts else None
        self.created = float(facts["created"])

    @classmethod
    def create(
        cls,
        folder: str | Path,
        images: ImageSet,
        *,
        model: Model | None = None,
        held_out_share: float = HELD_OUT_SHARE,
        key: bytes | None = None,
    ) -> "Project":
        """Make the folder of a project; it is whole or absent.

        Args:
            folder: a new one.
            images: what is annotated. They stay where they are; the project keeps the list of them.
            model: whose features propose; the project keeps its name and the hash of its weights.
            held_out_share: of the images, chosen by a keyed hash of their uris; their labels measure and do not teach.
            key: of the hash, up to 64 bytes; None draws one.

        Raises:
            ProjectError: the folder is in use or cannot be written, an image is listed twice, or a share out of range.
        """
        create_folder(Path(folder).absolute(), images, model=model, share=held_out_share, key=key)
        return cls.open(folder, model=model)

    @classmethod
    def open(cls, folder: str | Path, *, model: Model | None = None) -> "Project":
        """Open a project.

        Args:
            folder: of the project.
            model: which is to propose; another than the project was made with is refused.

        Raises:
            ProjectError: no project, one of another model or of a newer foveal, or one that cannot be written.
        """
        folder = Path(folder).absolute()
        if not (folder / DATABASE).is_file():
            raise ProjectError(f"{folder} is no annotation project, it has no {DATABASE}; give the folder of one")
        database = Database(folder / DATABASE)
        try:
            project = cls(folder, database)
            project._check_model(model)
        except BaseException:
            database.close()
            raise
        return project

    def _check_model(self, model: Model | None) -> None:
        if model is None or self.model is None or model.identity == self.model["sha256"]:
            return
        given = {"name": model.card.name, "sha256": model.identity}
        raise ProjectError(
            f"{self.folder} was made with the model {described(self.model)}, and this is {described(given)}; open it "
            "with its model, or make another project"
        )

    def close(self) -> None:
        """Close the file; what was written is durable already."""
        self._database.close()

    def __enter__(self) -> "Project":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def image_set(self) -> ImageSet:
        """The image set, with the same rows and hash as when the project was made.

        Raises:
            ImageSetError: the folder of the images is gone.
        """
        return ImageSet.open(self.folder / IMAGES)

    # What is read.

    @property
    def revision(self) -> int:
        """The number of the last step."""
        with self._database.reading() as connection:
            return newest_revision(connection)

    def classes(self) -> tuple[Class, ...]:
        """Return the classes in the order in which they were added."""
        with self._database.reading() as connection:
            return classes.list_classes(connection)

    def count(self, chosen: Filter = Filter()) -> int:  # noqa: B008 (frozen)
        """Return how many images a filter leaves."""
        with self._database.reading() as connection:
            return queries.count_images(connection, chosen)

    def page(self, start: int = 0, count: int = 200, *, chosen: Filter = Filter()) -> tuple[ProjectImage, ...]:  # noqa: B008
        """Return `count` of the images that a filter leaves, from place `start`, in the order of the set."""
        with self._database.reading() as connection:
            return queries.page_of(connection, start, count, chosen)

    def images(self, indices: Sequence[int]) -> tuple[ProjectImage, ...]:
        """Return images by their rows; ProjectError for one that is not there."""
        with self._database.reading() as connection:
            return queries.images_at(connection, indices)

    def index(self, uri: str) -> int:
        """Return the row of an image; ProjectError where the project does not have it."""
        with self._database.reading() as connection:
            return queries.index_of(connection, uri)

    def annotations(
        self,
        uri: str | None = None,
        *,
        class_name: str | None = None,
        states: Iterable[State] = (),
        track: str | None = None,
        ids: Sequence[int] | None = None,
    ) -> tuple[Record, ...]:
        """Return the annotations that fit all that is given, in the order of their images and ids."""
        with self._database.reading() as connection:
            return queries.records(connection, uri=uri, class_name=class_name, states=states, track=track, ids=ids)

    def labels(self) -> Labels:
        """Return the accepted labels of whole images: what a head learns from, and is measured with."""
        with self._database.reading() as connection:
            return queries.labels(connection)

    def changes_since(self, revision: int) -> Changes:
        """Return what changed after a revision, so that several windows follow each other."""
        with self._database.reading() as connection:
            return queries.changes_since(connection, revision)

    def size(self, uri: str) -> Size:
        """Return width and height of an image in pixels, upright; read once from its header.

        Raises:
            ProjectError: the image is not in the project, gone, or none.
        """
        with self._database.reading() as connection:
            row = connection.execute("SELECT id, width, height FROM images WHERE uri = ?", (uri,)).fetchone()
        if row is not None and row["width"] is not None:
            return row["width"], row["height"]
        index = self.index(uri)
        try:
            size = read_size(self.image_set.read(index))
        except (BadImageError, ImageSetError) as error:
            raise ProjectError(f"the size of {uri} is not known, since it cannot be read: {error}") from error
        with self._database.writing() as connection:
            connection.execute("UPDATE images SET width = ?, height = ? WHERE id = ?", (*size, index))
        return size

    # What is written.

    def write(
        self,
        edits: Sequence[Edit] = (),
        *,
        remove: Sequence[tuple[int, int | None]] = (),
        states: Mapping[str, ImageState] | None = None,
        client: str = _ANYBODY,
        words: str = "",
        request: str | None = None,
    ) -> Written:
        """Write annotations, remove some and set the state of images, all in one step.

        Args:
            edits: new and changed annotations.
            remove: ids, each with the revision that was seen; None removes whatever is there.
            states: of images, by uri.
            client: who does it.
            words: what is done, for "undo ...".
            request: a name that the client gives; sent again, it is answered as before and not done again.

        Returns:
            The revision and ids; and what was refused since it had changed after it was seen. That is kept, see
            `conflicts`.

        Raises:
            ProjectError: something that no picture can have, or a class or image that is not there; nothing is written.
        """
        for edit in edits:
            check_edit(edit, self.size)
        for state in (states or {}).values():
            check_one_of("state", state, get_args(ImageState))

        def change(opened: Step) -> None:
            for edit in edits:
                writing.put(opened, edit, client)
            for found, seen in remove:
                writing.take_away(opened, found, seen, client)
            for uri, state in (states or {}).items():
                index = queries.index_of(opened.connection, uri)
                [image] = queries.images_at(opened.connection, [index])
                if image.state != state:
                    opened.change("images", index, state=state)

        return self._step(change, client=client, words=words or _described(edits, remove, states), request=request)

    def label(
        self,
        uri: str,
        class_name: str | None,
        *,
        seen: int | None = None,
        client: str = _ANYBODY,
        request: str | None = None,
    ) -> Written:
        """Give an image the label of a class, in place of the one it has and of proposed ones; None takes it away.

        Args:
            uri: the image.
            class_name: one of the classes.
            seen: the revision of the label that it replaces, 0 where none was seen; None replaces whatever is there.
            client: who does it.
            request: as in `write`.

        Raises:
            ProjectError: no such image or class.
        """

        def change(opened: Step) -> None:
            writing.relabel(opened, uri, class_name, seen=seen, client=client)

        words = f"label {uri} '{class_name}'" if class_name is not None else f"take the label of {uri} away"
        return self._step(change, client=client, words=words, request=request)

    def propose(
        self, annotations: Sequence[Annotation], *, client: str = _ANYBODY, words: str = "", request: str | None = None
    ) -> Written:
        """Write what a computer proposes, in place of its earlier undecided proposals for the same classes.

        What a person has accepted or rejected is not proposed again: no label for an image that has one, nothing of a
        class that was accepted or rejected on an image, and nothing on images that are done.

        Args:
            annotations: whose state is "proposed" or "unsure"; all labels, or all masks and boxes.
            client: who asked for them.
            words: as in `write`.
            request: as in `write`.

        Returns:
            As `write`; `left` counts those not written.
        """
        proposals.check(annotations)
        for annotation in annotations:
            check_edit(Edit(annotation), self.size)
        left = 0

        def change(opened: Step) -> None:
            nonlocal left
            left = proposals.replace_undecided(opened, annotations)

        words = words or f"propose {len(annotations)} annotations"
        return replace(self._step(change, client=client, words=words, request=request), left=left)

    def add_class(self, name: str, colour: str | None = None, *, client: str = _ANYBODY) -> Written:
        """Add a class, with a colour #rrggbb or one far from the others; ProjectError where the name is taken."""
        return self._step(
            lambda opened: classes.add_class(opened, name, colour), client=client, words=f"add the class '{name}'"
        )

    def rename_class(self, name: str, new: str, *, client: str = _ANYBODY) -> Written:
        """Give a class another name. A window that still writes the old name means the same class."""
        return self._step(
            lambda opened: classes.rename_class(opened, name, new), client=client, words=f"rename '{name}' '{new}'"
        )

    def recolour_class(self, name: str, colour: str, *, client: str = _ANYBODY) -> Written:
        """Give a class another colour #rrggbb."""
        colour = classes.checked_colour(colour)

        def change(opened: Step) -> None:
            opened.change("classes", classes.find_class(opened.connection, name), colour=colour)

        return self._step(change, client=client, words=f"give '{name}' another colour")

    def merge_class(self, name: str, into: str, *, client: str = _ANYBODY) -> Written:
        """Give all annotations of one class to another, and remove the first."""
        return self._step(
            lambda opened: classes.merge_class(opened, name, into), client=client, words=f"merge '{name}' into '{into}'"
        )

    def remove_class(self, name: str, *, with_annotations: bool = False, client: str = _ANYBODY) -> Written:
        """Remove a class. One with accepted annotations is refused unless they are to go too; undo brings all back."""
        return self._step(
            lambda opened: classes.remove_class(opened, name, with_annotations=with_annotations),
            client=client,
            words=f"remove the class '{name}'",
        )

    # What is taken back.

    def undo(self, *, client: str = _ANYBODY, request: str | None = None) -> Written | None:
        """Take back the last step of a client, but for what others have changed since; None where there is none."""
        return self._take_back(undo_target, "undo", client, request)

    def redo(self, *, client: str = _ANYBODY, request: str | None = None) -> Written | None:
        """Do the step again that a client has undone last; None where there is none."""
        return self._take_back(redo_target, "redo", client, request)

    def can(self, *, client: str = _ANYBODY) -> tuple[str | None, str | None]:
        """Return in words what a client can undo and redo."""
        with self._database.reading() as connection:
            undone, redone = undo_target(connection, client), redo_target(connection, client)
        return undone and undone.words, redone and redone.words

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return the changes that were refused since somebody else had changed the same, until they are settled."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT * FROM conflicts ORDER BY id").fetchall()
            return tuple(writing.conflict_of(connection, row) for row in rows)

    def settle(self, conflict: int, take: Literal["stored", "wanted"], *, client: str = _ANYBODY) -> Written:
        """Decide a conflict for what the project holds, or for what was refused.

        Raises:
            ProjectError: no such conflict: it was settled already.
        """
        check_one_of("take", take, ("stored", "wanted"))
        found = {one.id: one for one in self.conflicts()}.get(conflict)
        if found is None:
            raise ProjectError(f"there is no conflict {conflict}; it was settled already")

        if take == "stored":
            with self._database.writing() as connection:
                connection.execute("DELETE FROM conflicts WHERE id = ?", (conflict,))
            return Written(self.revision)
        return self._step(
            lambda opened: writing.take_wanted(opened, found), client=client, words="take the other version"
        )

    # Parts.

    def _step(
        self,
        change: Callable[[Step], Any],
        *,
        client: str,
        words: str,
        request: str | None = None,
        kind: str = "do",
        of: int | None = None,
    ) -> Written:
        try:
            with step(self._database, client=client, words=words, request=request, kind=kind, of=of) as opened:
                left = change(opened)
        except Repeated as repeated:
            return self._outcome(repeated.revision)
        if not opened.kept:
            return Written(self.revision)
        outcome = self._outcome(opened.revision)
        return replace(outcome, left=left) if isinstance(left, int) else outcome

    def _outcome(self, revision: int) -> Written:
        with self._database.reading() as connection:
            ids = connection.execute(
                "SELECT row FROM changes WHERE revision = ? AND place = 'annotations' AND after IS NOT NULL "
                "ORDER BY row",
                (revision,),
            ).fetchall()
            words = connection.execute("SELECT words FROM steps WHERE revision = ?", (revision,)).fetchone()[0]
            rows = connection.execute("SELECT * FROM conflicts WHERE revision = ? ORDER BY id", (revision,)).fetchall()
            conflicts = tuple(writing.conflict_of(connection, row) for row in rows)
        return Written(revision, tuple(row[0] for row in ids), conflicts, words)

    def _take_back(
        self, target_of: Callable[[Any, str], Target | None], kind: str, client: str, request: str | None
    ) -> Written | None:
        with self._database.writing() as connection:  # so that two windows do not take back the same
            if (done := step_of_request(connection, request)) is not None:
                return self._outcome(done)
            if (target := target_of(connection, client)) is None:
                return None
            return self._step(
                lambda opened: opened.take_back(target.revision),
                client=client,
                words=target.words,
                request=request,
                kind=kind,
                of=target.of,
            )


def _described(
    edits: Sequence[Edit], remove: Sequence[tuple[int, int | None]], states: Mapping[str, ImageState] | None
) -> str:
    parts = [
        f"{verb} {count} {noun}{'s' if count > 1 else ''}"
        for verb, count, noun in (
            ("write", len(edits), "annotation"),
            ("remove", len(remove), "annotation"),
            ("set the state of", len(states or {}), "image"),
        )
        if count
    ]
    return ", ".join(parts) or "change nothing"
