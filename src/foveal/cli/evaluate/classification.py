"""The options of labelled images that the protocols of classification share."""

from typing import Annotated

import typer

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Labelled images: a folder with train/ and test/ or val/ of CLASS/name.jpg, with train.txt and test.txt, "
        "ImageNet as distributed, or one labelled set, of which --split is held out.",
    ),
]
TrainOption = Annotated[str | None, typer.Option("--train", help="Instead of --data: labelled images to learn from.")]
TestOption = Annotated[str | None, typer.Option("--test", help="Labelled images that are classified.")]
SplitOption = Annotated[
    float | None, typer.Option("--split", help="Of one labelled set: share held out by uri.  [default: 0.2]")
]
