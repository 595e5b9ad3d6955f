"""`foveal propagate`: labels or masks of a few images find those of all others of a set."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal.cli.loading import NumHeadsOption, open_model
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.annotate.given import Given
    from foveal.annotate.propagate_masks import Trust
    from foveal.annotate.propagate_set import PropagatedMasks
    from foveal.annotate.types import Annotation
    from foveal.features.extract import Model
    from foveal.features.store import FeatureStore
    from foveal.images.imageset import ImageSet


def propagate(
    images: Annotated[str, typer.Argument(metavar="SET", help="All images: a folder, list, shards or image set.")],
    source: Annotated[
        Path,
        typer.Option(
            "--from",
            help="What is known: CSV or Parquet with uri and label, a folder of mask PNGs, a project, "
            "or annotations of COCO, Label Studio, CVAT or FiftyOne.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="What to write. A project that is there is added to.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Model folder, checkpoint, or name in `foveal models`.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Labels: a feature store of the set.", file_okay=False)] = None,
    token: Annotated[str | None, typer.Option(help="Labels: which vectors of the store.  [default: cls]")] = None,
    to: Annotated[
        str, typer.Option(help="project, csv (labels), coco, label-studio, cvat, fiftyone, yolo, yolo-seg, voc.")
    ] = "project",
    kind: Annotated[
        Literal["labels", "masks"] | None, typer.Option("--of", help="What of --from, where it has both.")
    ] = None,
    source_format: Annotated[str | None, typer.Option("--format", help="The format of --from, if not evident.")] = None,
    precision: Annotated[
        float | None, typer.Option(help="Of what is proposed; the rest is unsure.  [default: 0.9; masks 0.8]")
    ] = None,
    min_iou: Annotated[
        float | None, typer.Option("--min-iou", help="Masks: IoU with the truth that counts as right.  [default: 0.5]")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Masks: short side of the pictures, pixels.  [default: the model's]")
    ] = None,
    video: Annotated[bool, typer.Option("--video", help="Masks: the images are frames, in the set's order.")] = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Propose labels or masks for all other images; what held-out ones cannot show is left unsure."""
    from foveal.annotate.given import read_given
    from foveal.annotate.propagate_masks import Trust
    from foveal.annotate.propagated import check_project, check_target
    from foveal.features.store import FeatureStore
    from foveal.images.imageset import ImageSet

    trust = Trust(0.5 if min_iou is None else min_iou, 0.8 if precision is None else precision)
    if video and (precision is not None or min_iou is not None):
        raise FovealError("no frame of a video is held out, so that --precision and --min-iou have no effect beside it")
    check_target(out, to)
    pictures = ImageSet.open(images)
    given = read_given(source, pictures, kind=kind, format=source_format)
    of_masks = {"--min-iou": min_iou is not None, "--size": size is not None, "--video": video}
    of_labels = {"--store": store is not None, "--token": token is not None}
    _check_options(given.kind, of_labels if given.kind == "masks" else of_masks, to)
    if token is not None and store is None:
        raise FovealError("--token names vectors of a store; give --store too, or leave it out")
    opened = None if store is None else FeatureStore.open(store)
    _check_source(given, opened, source)
    loaded = None if model is None else open_model(model, num_heads=num_heads)
    _check_model(given, loaded, opened, source)
    check_project(out, pictures, given, model=loaded or opened)
    if given.kind == "labels":
        found = _labels(pictures, given, loaded, opened, token=token, precision=0.9 if precision is None else precision)
    elif loaded is None:
        raise FovealError("masks are carried by what a model sees in the pictures; give it by --model")
    else:
        found = _masks(pictures, given, loaded, size=size, trust=trust, video=video)
    _write(found, given, pictures, out, to=to, model=loaded or opened)
    for note in given.notes:
        typer.echo(f"note: {note}")


def _labels(
    images: "ImageSet",
    given: "Given",
    model: "Model | None",
    store: "FeatureStore | None",
    *,
    token: str | None,
    precision: float,
) -> "Sequence[Annotation]":
    from foveal.annotate.propagate_labels import propagate_labels
    from foveal.annotate.set_features import computed_vectors, stored_vectors

    if store is not None:
        vectors = stored_vectors(images, store, name=token)
    elif model is None:
        raise FovealError("labels are carried by features; give --store, or --model to compute them")
    else:
        with progress_of("extracting") as progress:
            vectors = computed_vectors(images, model, progress=progress)
    known = set(vectors.uris)
    labels = {uri: name for uri, name in given.labels.items() if uri in known}
    found = propagate_labels(vectors.features, vectors.uris, labels, precision=precision)
    typer.echo(
        f"{len(labels):,} labels of {len(found.fit.classes)} classes, {len(found.annotations):,} images without one: "
        f"{found.num_proposed:,} proposed, {len(found.annotations) - found.num_proposed:,} unsure"
    )
    accuracy = found.fit.accuracy
    if accuracy is not None:
        typer.echo(f"each label held out in turn: top-1 {accuracy.text} % ({accuracy.interval}) on {len(labels):,}")
    typer.echo(f"a precision of {100 * precision:g} % was asked for: {found.fit.calibration.summary}")
    if vectors.missing:
        typer.echo(
            f"note: {len(vectors.missing):,} images have no features, first {vectors.missing[0]}; nothing is said of "
            "them"
        )
    return found.annotations


def _masks(
    images: "ImageSet",
    given: "Given",
    model: "Model",
    *,
    size: int | None,
    trust: "Trust",
    video: bool,
) -> "Sequence[Annotation]":
    from foveal.annotate.propagate_set import propagate_along_video, propagate_over_set

    with progress_of("following" if video else "looking") as progress:
        if video:
            found = propagate_along_video(model, images, given, size=size, progress=progress)
        else:
            found = propagate_over_set(model, images, given, size=size, trust=trust, progress=progress)
    _tell_masks(found, given, trust)
    return found.annotations


def _tell_masks(found: "PropagatedMasks", given: "Given", trust: "Trust") -> None:
    num_unsure = len(found.annotations) - found.num_proposed
    typer.echo(
        f"{len(given.annotated.annotations):,} masks of {len(given.annotated.classes)} classes, "
        f"{found.num_looked:,} images without one: {found.num_proposed:,} masks proposed, {num_unsure:,} unsure"
    )
    for name, calibration in found.calibrations.items():
        typer.echo(
            f"{name}: a precision of {100 * trust.precision:g} % at IoU {trust.min_iou:g} was asked for: "
            f"{calibration.summary}"
        )
    if not found.calibrations:
        typer.echo("frames are followed and none is held out: every mask is unsure until a person has looked")
    if found.unreadable:
        typer.echo(f"note: {len(found.unreadable):,} images cannot be read, first {found.unreadable[0]}")


def _check_options(kind: str, given: dict[str, bool], to: str) -> None:
    """Refuse options without effect on labels or masks."""
    if wrong := [option for option, typed in given.items() if typed]:
        raise FovealError(f"{wrong[0]} has no effect on {kind}; leave it out")
    if kind == "masks" and to == "csv":
        raise FovealError("--to csv holds labels, and these are masks; choose project or another format")


def _check_source(given: "Given", store: "FeatureStore | None", source: Path) -> None:
    """Refuse a store of another model than the project's."""
    from foveal.features.origin import described, identity_of

    if given.model is not None and store is not None and identity_of(store)["sha256"] != given.model["sha256"]:
        raise FovealError(
            f"{source} was made with the model {described(given.model)}, and {store.path} with "
            f"{described(identity_of(store))}; give a store of its model"
        )


def _check_model(given: "Given", model: "Model | None", store: "FeatureStore | None", source: Path) -> None:
    """Refuse a model that is neither the store's nor the project's."""
    from foveal.features.origin import check_model, described, identity_of

    if model is None:
        return
    if store is not None:
        check_model(store, model)
    if given.model is not None and given.model["sha256"] != model.identity:
        raise FovealError(
            f"{source} was made with the model {described(given.model)}, and this is {described(identity_of(model))}; "
            "use its model"
        )


def _write(
    found: "Sequence[Annotation]",
    given: "Given",
    images: "ImageSet",
    out: Path,
    *,
    to: str,
    model: "Model | FeatureStore | None",
) -> None:
    from foveal.annotate.propagated import PROJECT, TABLE, write_files, write_project, write_table

    notes: list[str] = []
    left = 0
    if to == TABLE:
        write_table(found, given, out)
    elif to == PROJECT:
        left = write_project(found, given, images, out, model=model)
    else:
        notes = write_files(found, given, images, out, to=to)
    typer.echo(f"wrote {out}" + (f"; {left:,} are left out, which people have decided already" if left else ""))
    for note in notes:
        typer.echo(f"note: {note}")
