"""From what a user calls a model (a folder, a file, a name in `foveal models`, a url) to a network and its card."""

from pathlib import Path

from foveal.backbone.card import Card
from foveal.backbone.download import SAID, CachedFile, download
from foveal.backbone.formats import load_checkpoint
from foveal.backbone.hub import CHECKPOINTS
from foveal.backbone.vit import VisionTransformer
from foveal.errors import DownloadError, WeightsError, nearest

# What has a backbone inside. A head has none, and Mask2Former's is not a plain ViT.
LOADABLE = ("backbone", "depth model")


def open_backbone(source: str | Path) -> tuple[VisionTransformer, Card]:
    """Return the network, in evaluation mode on the CPU, and its card.

    Args:
        source: a model folder; a checkpoint in any known format, recognised by its sha256 if it is a known one; or,
            where no file of that name exists, a name in `foveal models` or a url, which is fetched into the cache once.

    Raises:
        WeightsError: nothing is called that, or the weights are damaged or do not fit.
        DownloadError: it cannot be fetched.
    """
    path = Path(source)
    if path.exists():
        return load_checkpoint(path)
    name = str(source)
    if name in CHECKPOINTS:
        return _open_known(name)
    if name.startswith(("https://", "http://")):
        return _open_downloaded(download(name), {})
    raise WeightsError(
        f"{name} is no file or folder here and no known checkpoint{nearest(name, CHECKPOINTS)}; give a model folder, a "
        "checkpoint, or a name in `foveal models`"
    )


def _open_known(name: str) -> tuple[VisionTransformer, Card]:
    row = CHECKPOINTS[name]
    if row.kind not in LOADABLE:
        instead = f"; load its backbone, '{row.belongs_to}'" if row.belongs_to else ""
        raise DownloadError(f"{name} is a {row.kind}, which has no backbone to load{instead}")
    return _open_downloaded(download(name), {"name": row.name, "licence": row.licence})


def _open_downloaded(file: CachedFile, changes: dict[str, object]) -> tuple[VisionTransformer, Card]:
    backbone, card = load_checkpoint(file.path)
    origin = {"url": file.url, "sha256": file.sha256, "verified": SAID[file.verified]}
    return backbone, card.model_copy(update={**changes, "lineage": {**card.lineage, "downloaded": origin}})
