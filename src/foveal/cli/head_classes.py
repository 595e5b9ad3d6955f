"""What `foveal head` does for classification, and what its tasks share."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from foveal.cli.evaluate.results import report_results
from foveal.cli.loading import open_model
from foveal.cli.pictures import Listing, read_entries
from foveal.cli.terminal import progress_of, write_file
from foveal.errors import FovealError

if TYPE_CHECKING:
    import numpy as np

    from foveal.evaluate.layouts.classification import Classification
    from foveal.features.extract import Model
    from foveal.tasks.classify import ClassPredictor
    from foveal.tasks.head import Head
    from foveal.tasks.protocols import FitSettings

_BATCH_SIZE = 32
_BY_CLASS = "by_class"
_MOST = 5  # classes that are named of each image


def fit_classes(kind: str, *, model: str, data: str, out: Path, settings: "FitSettings", num_heads: int | None) -> None:
    """Fit a classification head on labelled images and say its accuracy on those held out."""
    from foveal.evaluate.layouts.classification import open_classification
    from foveal.tasks.fit_classes import fit_classifier
    from foveal.tasks.head import save_head
    from foveal.tasks.kinds import head_card

    found = open_classification(data)
    classes = sorted(set(found.train.labels or ()))
    loaded = open_model(model, num_heads=num_heads)
    card = head_card(loaded, "classification", kind, classes=classes)
    with kept_state(out) as state, progress_of("extracting") as extracting, progress_of("fitting") as progress:
        fitted = fit_classifier(
            loaded, card, found.train, settings, state=state, extracting=extracting, progress=progress
        )
        save_head(out, fitted.head)
    measured = "" if fitted.accuracy is None else f"; top-1 of a tenth that was held out: {fitted.accuracy:.2f} %"
    typer.echo(f"{out}: {card.name}, {len(classes)} classes, fitted on images of {found.name}{measured}")


def predict_classes(predictor: "ClassPredictor", listing: Listing, out: Path, *, probabilities: bool) -> None:
    """Write the most probable classes of images as predictions.csv, and all probabilities as probabilities.npy."""
    import numpy as np

    uris, rows = [], []
    pictures = read_entries(listing, channels=predictor.model.card.backbone.channels)
    while batch := list(islice(pictures, _BATCH_SIZE)):
        uris += [entry.uri for entry, _ in batch]
        rows.append(predictor.probabilities([pixels for _, pixels in batch]))
    found = np.concatenate(rows)
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "predictions.csv", _predictions(uris, found, predictor.classes).encode())
    if probabilities:
        stream = io.BytesIO()
        np.save(stream, found)
        write_file(out / "probabilities.npy", stream.getvalue())
    typer.echo(f"{out}: labels of {len(uris)} images")


def evaluate_classes(
    context: typer.Context, model: "Model", head: "Head", *, folder: Path, data: str, seed: int, out: Path | None
) -> None:
    """Measure a classification head on test images; write accuracy by class and the confusion matrix into `out`."""
    from foveal.evaluate.classification import run
    from foveal.evaluate.confusion import Confusion, write_confusion
    from foveal.evaluate.layouts.classification import open_classification
    from foveal.tasks.classify import ClassPredictor

    found = open_classification(data)
    head = with_names(head, found)
    predictor = ClassPredictor(model, head)
    name = str(head.card.lineage.get("kind", head.card.architecture))
    with progress_of("measuring") as progress:
        measures, confusion = run(predictor, found.test, name=name, seed=seed, progress=progress)
    if out is not None:
        title = f"{protocol_of('classify', head)}, {head.card.name}, {found.name}"
        file = write_confusion(out, Confusion(title, predictor.classes, confusion))
        (out / _BY_CLASS).mkdir(exist_ok=True)
        write_file(out / _BY_CLASS / file.name, _by_class(confusion, predictor.classes).encode())
    report_results(
        context,
        measures,
        protocol=protocol_of("classify", head),
        model=model,
        data=found.name,
        data_hash=found.hash,
        out=out,
        title=f"{head.card.name}, {len(found.test)} test images of {found.name}",
    )


def protocol_of(name: str, head: "Head", *words: str) -> str:
    """Return the name of a protocol of a head that is given: it was fitted in any way, and heads are told apart."""
    return ", ".join([name, f"head {head.identity[:8]}", *words])


def open_classifier(path: Path, model: "Model", data: "Classification") -> "Head":
    """Open a classification head, a folder or the file of an official one; FovealError for a head of another task."""
    from foveal.tasks.public_heads import open_head

    head = open_head(path, model)
    if head.card.task != "classification":
        raise FovealError(f"{path} is a head for {head.card.task}; give one for classification")
    return with_names(head, data)


def with_names(head: "Head", data: "Classification") -> "Head":
    """Return a head whose classes have the names that the train labels have, where its file has none."""
    return head if head.card.classes else of_classes(head, sorted(set(data.train.labels or ())), data.name)


@contextmanager
def kept_state(out: Path) -> Iterator[Path]:
    """Give the file that keeps the state of a fit until its head is kept, and say on an interruption that it is."""
    state = out.absolute().with_name(f".{out.name}.fit.safetensors")
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FovealError(f"{state.parent} cannot be made ({error.strerror}); choose another place") from error
    try:
        yield state
        state.unlink(missing_ok=True)
    except (KeyboardInterrupt, SystemExit):
        if state.is_file():
            typer.echo("the steps made so far are kept; run the same command again to go on", err=True)
        raise


def of_classes(fitted: "Head", classes: Sequence[str], data: str) -> "Head":
    """Return a head of the classes of a data set; the file of a public head has their number alone."""
    known = fitted.card.classes
    if not known and fitted.card.settings.get("num_classes") == len(classes):
        return replace(fitted, card=fitted.card.model_copy(update={"classes": list(classes)}))
    if list(classes) != known:
        count = len(known) or fitted.card.settings.get("num_classes")
        raise FovealError(
            f"the head knows {count} classes, {', '.join(known[:3]) or 'not named'}, ...; {data} has {len(classes)}, "
            f"{', '.join(classes[:3])}, ...; measure it on data of the same classes"
        )
    return fitted


def read_names(path: Path) -> list[str]:
    """Return the names of classes in a file, one a line."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FovealError(f"--names {path} cannot be read ({error}); give a text file with a name a line") from error
    if not names or not all(names):
        raise FovealError(f"--names {path} has an empty line or no line; give a name on each line")
    return names


def _predictions(uris: Sequence[str], found: "np.ndarray", classes: Sequence[str]) -> str:
    """Return a row an image: its most probable class, and the next ones."""
    most = min(_MOST, len(classes))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    endings = [""] + [f"_{rank}" for rank in range(2, most + 1)]
    writer.writerow(["image", *(f"{column}{ending}" for ending in endings for column in ("label", "probability"))])
    for uri, row in zip(uris, found, strict=True):
        order = (-row).argsort(kind="stable")[:most]
        writer.writerow([uri, *(value for i in order for value in (classes[i], f"{row[i]:.4f}"))])
    return text.getvalue()


def _by_class(confusion: "np.ndarray", classes: Sequence[str]) -> str:
    """Return the accuracy of each class as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "images", "top-1 in %"])
    for number, name in enumerate(classes):
        count = int(confusion[number].sum())
        writer.writerow([name, count, f"{100 * confusion[number, number] / count:.2f}" if count else ""])
    return text.getvalue()
