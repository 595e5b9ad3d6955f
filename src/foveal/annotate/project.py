"""The annotation project: a folder with an image set and all that was said about its images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from foveal.annotate import classes, exchange, proposals, queries, writing
from foveal.annotate.checks import check_edit, check_one_of
from foveal.annotate.creation import DATABASE, create_folder, model_facts
from foveal.annotate.database import Database
from foveal.annotate.journal import Repeated, Step, Target, redo_target, step, step_of_request, undo_target
from foveal.annotate.reading import ANYBODY, ProjectReader
from foveal.annotate.records import Edit, ImageState, Written
from foveal.annotate.types import AnnotatedSet, Annotation, Source
from foveal.errors import ProjectError
from foveal.features.extract import Model
from foveal.features.origin import described, identity_of
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet

HELD_OUT_SHARE = 0.2


class Project(ProjectReader):
    """Images, classes, annotations and the log of all changes. Threads may share one, and processes one folder.

    Each change is one step, durable when the call returns. It has a revision, and the client that made it can undo it.

    Example:
        >>> project = Project.create("birds", ImageSet.open("photos/"))  # doctest: +SKIP
        >>> project.add_class("wren")  # doctest: +SKIP
        >>> project.label("garden/1.jpg", "wren")  # doctest: +SKIP
        >>> project.undo()  # doctest: +SKIP
    """

    @classmethod
    def create(
        cls,
        folder: str | Path,
        images: ImageSet,
        *,
        model: Model | FeatureStore | None = None,
        held_out_share: float = HELD_OUT_SHARE,
        key: bytes | None = None,
    ) -> "Project":
        """Make the folder of a project; it is whole or absent.

        Args:
            folder: a new one.
            images: what is annotated. They stay where they are; the project keeps the list of them.
            model: whose features propose, or a store of them; the project keeps the name of the model and the hash of
                its weights.
            held_out_share: of the images, chosen by a keyed hash of their uris; their labels measure and do not teach.
            key: of the hash, up to 64 bytes; None draws one.

        Raises:
            ProjectError: the folder is in use or cannot be written, an image is listed twice, or a share out of range.
        """
        create_folder(Path(folder).absolute(), images, model=model, share=held_out_share, key=key)
        return cls.open(folder, model=model)

    @classmethod
    def open(cls, folder: str | Path, *, model: Model | FeatureStore | None = None) -> "Project":
        """Open a project.

        Args:
            folder: of the project.
            model: which is to propose, or a store of its features; another than the project was made with is refused.

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

    def keep_model(self, model: Model | FeatureStore) -> None:
        """Keep from which model proposals come from now on, where none is kept yet.

        Raises:
            ProjectError: another one is.
        """
        if self.model is None:
            with self._database.writing() as connection:
                facts = model_facts(identity_of(model)).items()
                connection.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", facts)
            self.model = self._read_model()
        self._check_model(model)

    def _check_model(self, model: Model | FeatureStore | None) -> None:
        if model is None or self.model is None or (given := identity_of(model))["sha256"] == self.model["sha256"]:
            return
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

    # What is written.

    def add(self, found: AnnotatedSet, *, source: Source = "imported", client: str = ANYBODY) -> Written:
        """Add annotations of another tool and the classes they need, in one step; what is there already stays once.

        Args:
            found: whose images are in the project, by uri, at the size of the pictures.
            source: who said it.
            client: who adds it.

        Returns:
            As `write`; `left` counts the annotations that were there already.

        Raises:
            ProjectError: unknown images, a mask or picture of another size; nothing is added.
        """
        exchange.check_images(self, found)
        found = replace(found, annotations=tuple(replace(one, id=None, source=source) for one in found.annotations))
        self._check([Edit(one) for one in found.annotations])
        return self._step(
            lambda opened: exchange.add_set(opened, found),
            client=client,
            words=f"add {len(found.annotations)} annotations",
        )

    def write(
        self,
        edits: Sequence[Edit] = (),
        *,
        remove: Sequence[tuple[int, int | None]] = (),
        states: Mapping[str, ImageState] | None = None,
        client: str = ANYBODY,
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
        self._check(edits)
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
        client: str = ANYBODY,
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
        self, annotations: Sequence[Annotation], *, client: str = ANYBODY, words: str = "", request: str | None = None
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
        self._check([Edit(one) for one in annotations])
        return self._step(
            lambda opened: proposals.replace_undecided(opened, annotations),
            client=client,
            words=words or f"propose {len(annotations)} annotations",
            request=request,
        )

    def add_class(
        self, name: str, colour: str | None = None, *, client: str = ANYBODY, request: str | None = None
    ) -> Written:
        """Add a class, with a colour #rrggbb or one far from the others; ProjectError where the name is taken."""
        return self._step(
            lambda opened: classes.add_class(opened, name, colour),
            client=client,
            request=request,
            words=f"add the class '{name}'",
        )

    def rename_class(self, name: str, new: str, *, client: str = ANYBODY, request: str | None = None) -> Written:
        """Give a class another name. A window that still writes the old name means the same class."""
        return self._step(
            lambda opened: classes.rename_class(opened, name, new),
            client=client,
            request=request,
            words=f"rename '{name}' '{new}'",
        )

    def recolour_class(self, name: str, colour: str, *, client: str = ANYBODY) -> Written:
        """Give a class another colour #rrggbb."""
        colour = classes.checked_colour(colour)

        def change(opened: Step) -> None:
            opened.change("classes", classes.find_class(opened.connection, name), colour=colour)

        return self._step(change, client=client, words=f"give '{name}' another colour")

    def merge_class(self, name: str, into: str, *, client: str = ANYBODY, request: str | None = None) -> Written:
        """Give all annotations of one class to another, and remove the first."""
        return self._step(
            lambda opened: classes.merge_class(opened, name, into),
            client=client,
            request=request,
            words=f"merge '{name}' into '{into}'",
        )

    def remove_class(
        self, name: str, *, with_annotations: bool = False, client: str = ANYBODY, request: str | None = None
    ) -> Written:
        """Remove a class. One with accepted annotations is refused unless they are to go too; undo brings all back."""
        return self._step(
            lambda opened: classes.remove_class(opened, name, with_annotations=with_annotations),
            client=client,
            request=request,
            words=f"remove the class '{name}'",
        )

    def done_already(self, request: str) -> Written | None:
        """Return what became of a request that was done before, however often it is sent."""
        with self._database.reading() as connection:
            done = step_of_request(connection, request)
        return None if done is None else self._outcome(done)

    # What is taken back.

    def undo(self, *, client: str = ANYBODY, request: str | None = None) -> Written | None:
        """Take back the last step of a client, but for what others have changed since; None where there is none."""
        return self._take_back(undo_target, "undo", client, request)

    def redo(self, *, client: str = ANYBODY, request: str | None = None) -> Written | None:
        """Do the step again that a client has undone last; None where there is none."""
        return self._take_back(redo_target, "redo", client, request)

    def settle(self, conflict: int, take: Literal["stored", "wanted"], *, client: str = ANYBODY) -> Written:
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

    def _check(self, edits: Sequence[Edit]) -> None:
        """Refuse annotations that no picture can have, after reading the sizes that are needed together."""
        marked = {one.annotation.image for one in edits if one.annotation.mask or one.annotation.box or one.prompts}
        sizes = self.sizes(sorted(marked))
        for edit in edits:
            mask, uri = edit.annotation.mask, edit.annotation.image
            if mask and (mask.width, mask.height) != sizes[uri]:  # the picture may be another one by now
                sizes[uri] = self.size(uri)
            check_edit(edit, sizes.__getitem__)

    def _step(
        self,
        change: Callable[[Step], int | None],
        *,
        client: str,
        words: str,
        request: str | None = None,
        kind: str = "do",
        of: int | None = None,
    ) -> Written:
        """Make a change as one step; a number that it returns is how many things it left as they were."""
        try:
            with step(self._database, client=client, words=words, request=request, kind=kind, of=of) as opened:
                left = change(opened) or 0
        except Repeated as repeated:
            return self._outcome(repeated.revision)
        outcome = self._outcome(opened.revision) if opened.kept else Written(self.revision)
        return replace(outcome, left=left)

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
