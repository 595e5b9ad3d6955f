"""`foveal export huggingface`: a folder for transformers."""

from functools import partial

from foveal.cli.export.options import (
    ImagesOption,
    LicenceOption,
    LimitOption,
    ModelArgument,
    OutOption,
    report_export,
)
from foveal.cli.loading import NumHeadsOption


def huggingface(
    model: ModelArgument,
    out: OutOption,
    images: ImagesOption = None,
    limit: LimitOption = 0.999,
    accept_licence: LicenceOption = None,
    num_heads: NumHeadsOption = None,
) -> None:
    """Write a folder for AutoModel and AutoImageProcessor, compared with the model where transformers is."""
    from foveal.export.huggingface import export_huggingface

    make = partial(
        export_huggingface,
        model,
        out,
        images=images,
        limit=limit,
        accept_licence=accept_licence,
        num_heads=num_heads,
    )
    report_export(out, make)
