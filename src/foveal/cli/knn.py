"""`foveal knn`: how good are the features, without training anything."""

import json
from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.loading import EngineOption, FastOption, ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import check_file_target, print_rows, progress_of, typed_options, write_file
from foveal.errors import FovealError


def knn(
    context: typer.Context,
    model: ModelOption,
    train: Annotated[str, typer.Option(help="Labelled images that vote: a folder CLASS/name.jpg, a list or shards.")],
    test: Annotated[str | None, typer.Option(help="Labelled images that are classified.")] = None,
    split: Annotated[
        float | None, typer.Option(help="Without --test: share of --train held out by uri.  [default: 0.2]")
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option("--k", min=1, help="Neighbours; repeatable.  [default: 10 20 100 200]")
    ] = None,
    n_per_class: Annotated[int | None, typer.Option(help="Few-shot: train images of each class.")] = None,
    n_tries: Annotated[int | None, typer.Option(help="Few-shot: number of draws.  [default: 5]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the few-shot draws.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 32,
    pixels: Annotated[bool, typer.Option("--pixels", help="Add the raw-pixel baseline.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Classify labelled images by their nearest neighbours in feature space."""
    if test is not None and split is not None:
        raise FovealError("--split has no effect beside --test; leave one of them out")
    if n_tries is not None and n_per_class is None:
        raise FovealError("--n-tries has no effect without --n-per-class; add that, or leave it out")
    if n_per_class is None and "--seed" in typed_options(context):
        raise FovealError("--seed has no effect without --n-per-class; add that, or leave it out")
    if json_path is not None:
        check_file_target(json_path)
    import foveal
    from foveal.evaluate.knn import KS, run, run_pixels
    from foveal.features.labels import split_by_uri
    from foveal.images.imageset import ImageSet

    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    train_set = ImageSet.open(train)
    if test is None:
        train_set, test_set = split_by_uri(train_set, share=0.2 if split is None else split)
    else:
        test_set = ImageSet.open(test)
    ks, tries = k or KS, 5 if n_tries is None else n_tries
    with progress_of("extracting") as progress:
        rows = run(
            loaded,
            train_set,
            test_set,
            ks=ks,
            n_per_class=n_per_class,
            n_tries=tries,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )
    if pixels:
        rows += run_pixels(train_set, test_set, ks=ks, n_per_class=n_per_class, n_tries=tries, seed=seed)
    print_rows(rows, title=f"kNN, {len(train_set)} train and {len(test_set)} test images")
    if json_path is not None:
        report = {
            "protocol": "knn",
            "foveal": foveal.__version__,
            "model": {"name": loaded.card.name, "sha256": loaded.card.sha256},
            "engine": loaded.engine.description,
            "train": {"hash": train_set.hash, "num_images": len(train_set)},
            "test": {"hash": test_set.hash, "num_images": len(test_set)},
            "seed": seed,
            "rows": [row._asdict() for row in rows],
        }
        write_file(json_path, (json.dumps(report, indent=2) + "\n").encode())
