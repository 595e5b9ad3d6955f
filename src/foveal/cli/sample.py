"""`foveal sample`: a number of images, drawn evenly from clusters."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.cli.curation import StageOption, print_stage


def sample(
    clusters: Annotated[Path, typer.Argument(help="Clusters, by foveal cluster.", exists=True, file_okay=False)],
    out: StageOption,
    target: Annotated[int, typer.Option(help="Images to keep.")],
    among: Annotated[
        Path | None, typer.Option(help="Only what this stage has kept, such as foveal retrieve.", exists=True)
    ] = None,
    pick: Annotated[
        Literal["random", "closest"], typer.Option(help="Which of a cluster: any, or the closest to its centroid.")
    ] = "random",
    seed: Annotated[int, typer.Option(help="Of the choice.", min=0)] = 0,
) -> None:
    """Draw images evenly from clusters of clusters: each gives as many as the others, or all that it has."""
    from foveal.curate.sample import SampleSettings, run_sample

    settings = SampleSettings(target=target, pick=pick, seed=seed)
    stage = run_sample(clusters, among=among, out=out, settings=settings)
    print_stage(out, stage.summary or {})
