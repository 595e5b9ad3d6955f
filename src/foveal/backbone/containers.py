"""Files of weights as named tensors: which files make a checkpoint, and what they hold before it has a meaning."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
from torch import Tensor

from foveal.backbone.pickles import load_pickle
from foveal.backbone.recognise import explain_file
from foveal.backbone.weights import CARD, WEIGHTS, load_tensors
from foveal.errors import WeightsError
from foveal.files import sha256_of

INDEX = "model.safetensors.index.json"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_MAX_ENTRIES = 200_000  # tensors and other values of one checkpoint; ViT-g with its optimizer has about 5,000
_MAX_NESTING = 8
_MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors itself


@dataclass(frozen=True)
class Container:
    """What the files of a checkpoint hold.

    Attributes:
        tensors: by name; a dictionary inside a dictionary becomes "outer.inner".
        metadata: of safetensors files.
        integrity: how it was checked that the files are whole.
        num_bytes: size of the files.
        sha256: of each file, by its name.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    integrity: str
    num_bytes: int
    sha256: dict[str, str]


def read_container(path: Path) -> Container:
    """Read the file, or the files of the folder, at `path`.

    Raises:
        WeightsError: there is none, it is damaged, or it is something else; the message says what and what to do.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    integrity = ""
    files = weight_files(path)
    for file in files:
        found, said, integrity = _read(file)
        if repeated := found.keys() & tensors.keys():
            raise WeightsError(f"{path} holds {min(repeated)} twice; the parts do not belong together")
        tensors |= found
        metadata |= said
    sizes = sum(file.stat().st_size for file in files)
    return Container(tensors, metadata, integrity, sizes, {file.name: sha256_of(file) for file in files})


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold the weights of a checkpoint: the file itself, or those of a folder.

    A folder holds `model.safetensors`, its parts with their index, `pytorch_model.bin`, or a single file of weights.

    Raises:
        WeightsError: nothing is there, or more than one file could be meant.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise WeightsError(f"{path} does not exist; give a file of weights or the folder that holds it")
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        return _parts(path / INDEX)
    if (path / "pytorch_model.bin").is_file():
        return [path / "pytorch_model.bin"]
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if len(files) > 1:
        raise WeightsError(f"{path} holds {len(files)} files of weights; give one of them, e.g. {files[0]}")
    if any(path.glob("*.distcp")):
        raise WeightsError(
            f"{path} is a distributed checkpoint (torch.distributed.checkpoint), whose index is a pickle; "
            "turn it into a .pth with torch.distributed.checkpoint.format_utils.dcp_to_torch_save first"
        )
    if not files:
        near = path / "model"
        hint = f"did you mean {near}?" if (near / CARD).is_file() else "give a model folder or a file of weights"
        seen = ", ".join(sorted(entry.name for entry in path.iterdir())[:4]) or "nothing"
        raise WeightsError(
            f"{path} is not a model folder: it has no {CARD}, nor a file of weights ({', '.join(_SUFFIXES)}) among "
            f"{seen}; {hint}"
        )
    return files


def _parts(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index} cannot be understood ({error}); copy it again") from error
    files = [index.parent / str(name) for name in names]
    for file in files:
        if file.parent != index.parent or not file.is_file():
            raise WeightsError(f"{index} names {file.name}, which is not beside it; copy the whole folder")
    return files


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Return (tensors, metadata, integrity) of one file, by what its first bytes say it is."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    header = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or header > _MAX_HEADER_BYTES:
        if head[:4] != b"PK\x03\x04" and head[:1] != b"\x80":
            raise WeightsError(explain_file(path, head))
        content, integrity = load_pickle(path)
        return dict(_flatten(content, path)), {}, integrity
    if 8 + header > size:
        raise WeightsError(f"{path} is cut short: its header alone has {header} bytes, the file {size}; copy it again")
    tensors = load_tensors(path)
    with safetensors.safe_open(path, framework="pt") as opened:
        return tensors, dict(opened.metadata() or {}), "safetensors, which has no checksum"


def _flatten(content: object, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor inside nested dictionaries under its joined name; anything else is passed over."""
    if not isinstance(content, Mapping):
        what = "a single tensor" if isinstance(content, Tensor) else f"a {type(content).__name__}"
        raise WeightsError(f"{path} holds {what}, not a dictionary of tensors; save a state dict")
    waiting: list[tuple[str, Mapping[object, object], int]] = [("", content, 0)]
    seen = 0
    while waiting:
        prefix, mapping, depth = waiting.pop()
        seen += len(mapping)
        if seen > _MAX_ENTRIES or depth > _MAX_NESTING:
            raise WeightsError(
                f"{path} nests more than {_MAX_NESTING} levels or {_MAX_ENTRIES} values; it is no checkpoint"
            )
        for key, value in mapping.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{key}", value.detach()
            elif isinstance(value, Mapping):
                waiting.append((f"{prefix}{key}.", value, depth + 1))
