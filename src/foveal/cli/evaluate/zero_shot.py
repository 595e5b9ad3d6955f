"""`foveal evaluate zero-shot`: classes by their names alone."""

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.evaluate.results import BatchSizeOption, OutOption, SeedOption, check_results, report_results
from foveal.cli.loading import EngineOption, FastOption, ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.evaluate.zero_shot import EncodeTexts, ImageVectors
    from foveal.features.extract import Model

    VectorsOf = Callable[..., ImageVectors]


def zero_shot(
    context: typer.Context,
    model: ModelOption,
    data: Annotated[str, typer.Option("--data", help="Labelled images: a folder CLASS/name.jpg, a list or shards.")],
    vision_head: Annotated[Path | None, typer.Option(help="Vision head of dino.txt.", exists=True)] = None,
    text_encoder: Annotated[Path | None, typer.Option(help="Text encoder of dino.txt.", exists=True)] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Of dino.txt: CLIP's bpe_simple_vocab_16e6.txt.gz.", exists=True, dir_okay=False)
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="What classes are called: a label, a tab and a name a line.  [default: labels]")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="Text with {} for a name; repeatable.  [default: a photo of a {}.]")
    ] = None,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    out: OutOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Classify labelled images by how well their classes' names fit, with dino.txt or open_clip: nothing is trained."""
    from foveal.evaluate.zero_shot import TEMPLATE, check_templates, read_names, run
    from foveal.images.imageset import ImageSet

    files = {"--vision-head": vision_head, "--text-encoder": text_encoder, "--vocabulary": vocabulary}
    opens_pair = _check_files(model, files)
    check_results(out)
    templates = tuple(template or (TEMPLATE,))
    check_templates(templates)
    called = None if names is None else read_names(names)
    words = [] if called is None and templates == (TEMPLATE,) else [f"texts {_digest(called, templates)}"]
    images = ImageSet.open(data)
    open_towers = _open_clip if opens_pair else partial(_open_dinotxt, files=files)
    loaded, vectors_of, encode_texts = open_towers(
        model, engine=engine, precision=precision, fast=fast, num_heads=num_heads
    )
    with progress_of("encoding") as progress:
        measures = run(
            vectors_of(images, batch_size=batch_size, progress=progress),
            encode_texts,
            images,
            names=called,
            templates=templates,
            seed=seed,
        )
    report_results(
        context,
        measures,
        protocol=", ".join(["zero-shot", *words]),
        model=loaded,
        data=Path(data).resolve().name,
        data_hash=images.hash,
        out=out,
        title=f"zero-shot by {'open_clip' if opens_pair else 'dino.txt'}, {len(images)} images",
    )


def _digest(names: dict[str, str] | None, templates: Sequence[str]) -> str:
    """Return what tells the texts of classes from others."""
    return sha256(repr((names, tuple(templates))).encode()).hexdigest()[:8]


def _check_files(model: str, files: dict[str, Path | None]) -> bool:
    """Return whether the model brings its own text tower; FovealError where files are given or missing in vain."""
    if model.startswith("open_clip:"):
        if given := [option for option, path in files.items() if path is not None]:
            raise FovealError(f"{given[0]} has no effect: {model} has a text tower of its own; leave it out")
        return True
    if missing := [option for option, path in files.items() if path is None]:
        raise FovealError(
            f"{model} has no text tower; give dino.txt's files ({', '.join(missing)} missing), "
            "or a model open_clip:NAME/PRETRAINED"
        )
    return False


def _open_clip(model: str, **options: Any) -> "tuple[Model, VectorsOf, EncodeTexts]":
    from foveal.evaluate.zero_shot import vectors_of_open_clip
    from foveal.features.extract import load_pair

    loaded, towers = load_pair(model, **options)
    return loaded, partial(vectors_of_open_clip, loaded, towers), towers.encode_texts


def _open_dinotxt(
    model: str, *, files: dict[str, Path | None], **options: Any
) -> "tuple[Model, VectorsOf, EncodeTexts]":
    from foveal.evaluate.zero_shot import vectors_of_dinotxt
    from foveal.features.dinotxt import open_dinotxt

    loaded = open_model(model, **options)
    head, text, vocabulary = (path for path in files.values() if path is not None)
    towers = open_dinotxt(vision_head=head, text_encoder=text, vocabulary=vocabulary, width=loaded.card.backbone.width)
    return loaded, partial(vectors_of_dinotxt, loaded, towers), towers.encode_texts
