"""From what a user calls a model (a folder, a file, a name in `foveal models`, a url) to a network and its card."""

from pathlib import Path

from foveal.backbone.card import CARD, Card, read_card
from foveal.backbone.download import SAID, CachedFile, cached, download
from foveal.backbone.formats import load_checkpoint
from foveal.backbone.hub import CHECKPOINTS
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import WEIGHTS
from foveal.errors import DownloadError, WeightsError, nearest

# What has a backbone inside. A head has none, and Mask2Former's is not a plain ViT.
LOADABLE = ("backbone", "depth model")


def peek_card(source: str | Path) -> Card | None:
    """Return the card of a model folder or of a known name without its weights; None where only weights tell.

    Raises:
        WeightsError: a card that cannot be understood.
    """
    path = Path(source)
    if path.exists():
        folder = path.parent if path.name == WEIGHTS else path
        return read_card(folder) if (folder / CARD).is_file() else None
    row = CHECKPOINTS.get(str(source))
    return Card(name=row.name, backbone=row.backbone) if row and row.backbone and row.kind in LOADABLE else None


def file_of(source: str | Path) -> Path:
    """Return where a model lies that is a path here or a known name in the cache; nothing is fetched.

    Raises:
        WeightsError: it is a known name that is not in the cache, or neither; the message says what to do.
    """
    path, name = Path(source), str(source)
    if path.exists():
        return path
    if name not in CHECKPOINTS:
        raise WeightsError(
            f"{name} does not exist, and is no known checkpoint{nearest(name, CHECKPOINTS)}; give a file of weights, "
            "the folder that holds it, or a name in `foveal models`"
        )
    found = cached(name) if CHECKPOINTS[name].url else None
    if found is None:
        raise WeightsError(
            f"{name} is a known checkpoint and not in the cache; foveal models {name} says what it is, and "
            f"foveal download {name} fetches it"
        )
    return found.path


def open_backbone(source: str | Path, *, num_heads: int | None = None) -> tuple[VisionTransformer, Card]:
    """Return the network, in evaluation mode on the CPU, and its card.

    Args:
        source: a model folder; a checkpoint in any known format, recognised by its sha256 if it is a known one; or,
            where no file of that name exists, a name in `foveal models` or a url, which is fetched into the cache once.
        num_heads: attention heads, where neither the files nor the width tell.

    Raises:
        WeightsError: nothing is called that, or the weights are damaged or do not fit.
        DownloadError: it cannot be fetched.
    """
    path = Path(source)
    if path.exists():
        return load_checkpoint(path, num_heads=num_heads)
    name = str(source)
    if name in CHECKPOINTS:
        return _open_known(name, num_heads)
    if name.startswith(("https://", "http://")):
        return _open_downloaded(download(name), {}, num_heads)
    raise WeightsError(
        f"{name} is no file or folder here and no known checkpoint{nearest(name, CHECKPOINTS)}; give a model folder, a "
        "checkpoint, or a name in `foveal models`"
    )


def _open_known(name: str, num_heads: int | None) -> tuple[VisionTransformer, Card]:
    row = CHECKPOINTS[name]
    if row.kind not in LOADABLE:
        instead = f"; load its backbone, '{row.belongs_to}'" if row.belongs_to else ""
        raise DownloadError(f"{name} is a {row.kind}, which has no backbone to load{instead}")
    return _open_downloaded(download(name), {"name": row.name, "licence": row.licence}, num_heads)


def _open_downloaded(
    file: CachedFile, changes: dict[str, object], num_heads: int | None
) -> tuple[VisionTransformer, Card]:
    backbone, card = load_checkpoint(file.path, num_heads=num_heads)
    origin = {"url": file.url, "sha256": file.sha256, "verified": SAID[file.verified]}
    return backbone, card.model_copy(update={**changes, "lineage": {**card.lineage, "downloaded": origin}})
