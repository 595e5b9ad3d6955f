"""What the page of annotation and the server say to each other, as JSON."""

import secrets
from typing import Annotated, Any, Literal

from pydantic import Field

from foveal.annotate.records import Conflict, Edit, ProjectImage, Record, Written
from foveal.annotate.types import Annotation, Mask, Prompt
from foveal.serve.inputs import Part

Name = Annotated[str, Field(min_length=1, max_length=200)]
Client = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]
Request = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{8,64}$")]
Index = Annotated[int, Field(ge=0)]
Coordinate = Annotated[float, Field(allow_inf_nan=False, ge=-100_000, le=1_000_000)]


class PromptPart(Part):
    """See `foveal.annotate.types.Prompt`."""

    kind: Literal["point", "stroke", "box"]
    points: list[tuple[Coordinate, Coordinate]] = Field(min_length=1, max_length=2000)
    positive: bool = True
    radius: float = Field(default=0.0, ge=0, le=10_000)

    def prompt(self) -> Prompt:
        """Return it as the package has it."""
        return Prompt(self.kind, tuple(self.points), self.positive, self.radius)


Prompts = Annotated[list[PromptPart], Field(max_length=200)]


class MaskRequest(Part):
    """Prompts on an image, of which a mask is to be shown."""

    image: Index
    prompts: Prompts


class Label(Part):
    """An image gets a label, or loses it; `seen` is the revision of the label that it replaces."""

    act: Literal["label"]
    image: Index
    class_name: Name | None
    seen: int | None = None


class PutMask(Part):
    """A mask that prompts make, new or in place of another one."""

    act: Literal["mask"]
    image: Index
    class_name: Name
    prompts: Prompts = Field(min_length=1)
    id: int | None = None
    seen: int | None = None


class Judge(Part):
    """Annotations that were proposed are accepted or rejected, or get another class; (id, revision seen) of each."""

    act: Literal["judge"]
    annotations: list[tuple[int, int]] = Field(min_length=1, max_length=1000)
    state: Literal["accepted", "rejected"]
    class_name: Name | None = None


class Remove(Part):
    """Annotations go; (id, revision seen) of each."""

    act: Literal["remove"]
    annotations: list[tuple[int, int]] = Field(min_length=1, max_length=1000)


class SetState(Part):
    """An image is done, skipped, or open again."""

    act: Literal["state"]
    image: Index
    state: Literal["open", "done", "skipped"]


class TakeBack(Part):
    """The last step of this window is undone, or done again."""

    act: Literal["undo", "redo"]


class AddClass(Part):
    """A new class."""

    act: Literal["add_class"]
    name: Name


class RenameClass(Part):
    """Another name for a class."""

    act: Literal["rename_class"]
    name: Name
    new: Name


class MergeClass(Part):
    """All annotations of a class are of another one from now on."""

    act: Literal["merge_class"]
    name: Name
    into: Name


class RemoveClass(Part):
    """A class goes, and all that was said of it where this is wanted."""

    act: Literal["remove_class"]
    name: Name
    with_annotations: bool = False


class Settle(Part):
    """One of two versions is chosen."""

    act: Literal["settle"]
    conflict: int
    take: Literal["stored", "wanted"]


Action = Annotated[
    Label | PutMask | Judge | Remove | SetState | TakeBack | AddClass | RenameClass | MergeClass | RemoveClass | Settle,
    Field(discriminator="act"),
]


class WriteRequest(Part):
    """One change. A request that is sent again is done once."""

    client: Client
    request: Request
    action: Action


class ProposeLabels(Part):
    """Labels are wanted for images without one."""

    what: Literal["labels"]
    count: int = Field(default=200, ge=1, le=1000)


class ProposeSimilar(Part):
    """Masks of a class are wanted for the images most like those that have one."""

    what: Literal["similar"]
    class_name: Name
    count: int = Field(default=12, ge=1, le=1000)


class ProposeVideo(Part):
    """A class is to be followed through the frames in the folder of an image."""

    what: Literal["video"]
    class_name: Name
    image: Index


class ProposeRequest(Part):
    """Something is to be proposed."""

    client: Client
    request: Request
    wanted: Annotated[ProposeLabels | ProposeSimilar | ProposeVideo, Field(discriminator="what")]


class ExportRequest(Part):
    """What was accepted is written into a folder of the project."""

    request: Request = Field(default_factory=lambda: secrets.token_hex(12))
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    format: str = Field(max_length=40)


def image_json(image: ProjectImage) -> dict[str, Any]:
    """Return an image of a project."""
    return {
        "index": image.index,
        "uri": image.uri,
        "state": image.state,
        "held_out": image.held_out,
        "labels": [record_json(record) for record in image.labels],
        "num_marks": image.num_marks,
        "num_undecided": image.num_undecided,
    }


def record_json(record: Record) -> dict[str, Any]:
    """Return an annotation, without the pixels of its mask."""
    found = record.annotation
    return {
        "id": found.id,
        "revision": record.revision,
        "image": record.index,
        "uri": found.image,
        "class_name": found.class_name,
        "state": found.state,
        "source": found.source,
        "score": found.score,
        "kind": "mask" if found.mask else "box" if found.box else "label",
        "box": found.box or (found.mask.box() if found.mask else None),
        "track": found.track,
        "prompts": [
            {"kind": one.kind, "points": one.points, "positive": one.positive, "radius": one.radius}
            for one in record.prompts
        ],
    }


def written_json(written: Written) -> dict[str, Any]:
    """Return what became of a change."""
    return {
        "revision": written.revision,
        "ids": list(written.ids),
        "words": written.words,
        "left": written.left,
        "conflicts": [conflict_json(one) for one in written.conflicts],
    }


def conflict_json(conflict: Conflict) -> dict[str, Any]:
    """Return two versions of one thing, in words."""
    return {
        "id": conflict.id,
        "words": conflict.words,
        "stored": conflict.said_first,
        "wanted": conflict.said_second,
    }


def edit_of(action: PutMask, *, uri: str, mask: Mask) -> Edit:
    """Return the annotation that a person's prompts have made."""
    prompts = tuple(one.prompt() for one in action.prompts)
    return Edit(Annotation(uri, action.class_name, mask=mask, id=action.id), prompts, action.seen)
