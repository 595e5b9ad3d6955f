"""`foveal evaluate zero-shot`: classes by their names alone."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.evaluate.results import BatchSizeOption, OutOption, SeedOption, check_results, report_results
from foveal.cli.loading import EngineOption, FastOption, ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import progress_of


def zero_shot(
    context: typer.Context,
    model: ModelOption,
    data: Annotated[str, typer.Option("--data", help="Labelled images: a folder CLASS/name.jpg, a list or shards.")],
    vision_head: Annotated[Path, typer.Option(help="Vision head of dino.txt.", exists=True)],
    text_encoder: Annotated[Path, typer.Option(help="Text encoder of dino.txt.", exists=True)],
    vocabulary: Annotated[Path, typer.Option(help="CLIP's bpe_simple_vocab_16e6.txt.gz.", exists=True, dir_okay=False)],
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
    """Classify labelled images by how well their classes' names fit, with dino.txt: nothing is trained."""
    from foveal.evaluate.zero_shot import TEMPLATE, check_templates, read_names, run, vectors_of_dinotxt
    from foveal.features.dinotxt import open_dinotxt
    from foveal.images.imageset import ImageSet

    check_results(out)
    templates = template or (TEMPLATE,)
    check_templates(templates)
    called = None if names is None else read_names(names)
    images = ImageSet.open(data)
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    towers = open_dinotxt(
        vision_head=vision_head,
        text_encoder=text_encoder,
        vocabulary=vocabulary,
        width=loaded.card.backbone.width,
    )
    with progress_of("encoding") as progress:
        measures = run(
            vectors_of_dinotxt(loaded, towers, images, batch_size=batch_size, progress=progress),
            towers.encode_texts,
            images,
            names=called,
            templates=templates,
            seed=seed,
        )
    report_results(
        context,
        measures,
        protocol="zero-shot",
        model=loaded,
        data=Path(data).resolve().name,
        data_hash=images.hash,
        out=out,
        title=f"zero-shot by dino.txt, {len(images)} images",
    )
