"""The one place that opens pickle files: checked before it is read, and read with `weights_only`.

A checkpoint of PyTorch is a zip of raw storages and one small pickle that says how tensors lie in them; before version
1.6 it was a row of pickles followed by the storages. Pickle is a language of programs. So, in this order and before
anything is allocated: the directory of the zip must add up to the file, nothing in it may be compressed, the CRC of
every member must be right (PyTorch's own reader does not look), the pickle may name nothing but tensors, and the sizes
that it declares must be those of the storages. Only then `torch.load(..., weights_only=True)` runs.
"""

import io
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import IO

import torch

from foveal.backbone.pickle_scan import NONSENSE, Forbidden, scan_pickle
from foveal.errors import WeightsError

MAX_BYTES = 64 << 30  # ViT-g with its optimizer state in float32 takes 18 GB
MAX_MEMBERS = 20_000  # ViT-g, its optimizer state included, has about 3,000
MAX_PICKLE_BYTES = 32 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def load_pickle(path: Path) -> tuple[object, str]:
    """Read a checkpoint that `torch.save` wrote, and say how its integrity was checked.

    Args:
        path: a file in PyTorch's zip format, or in the format before version 1.6.

    Returns:
        What was saved (tensors on the CPU), and "zip, every checksum verified" or "legacy pickle, no checksum".

    Raises:
        WeightsError: damaged, cut short, a bomb, a program, or no checkpoint at all; the message says which.
    """
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        try:
            (_check_zip if is_zip else _check_legacy)(file, path)
        except Forbidden as error:
            raise WeightsError(explain_forbidden(path, error.name)) from error
        file.seek(0)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except NONSENSE as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(f"{path} is damaged or was not written by torch.save ({first_line})") from error
    return content, "zip, every checksum verified" if is_zip else "legacy pickle, no checksum"


def explain_forbidden(path: Path, name: str) -> str:
    """Say what a pickle that names `name` ("module name") is, and what to do about it."""
    dotted = name.replace(" ", ".")
    if name.startswith("torch.distributed"):
        return (
            f"{path} is one rank's shard of a distributed (FSDP) checkpoint: it holds {dotted}, a part of each tensor; "
            "load all shards with the program that wrote them, and save the teacher's state dict"
        )
    if name.startswith("torch.nn.modules"):
        return f"{path} holds a whole module ({dotted}), which is code; save module.state_dict() where it was made"
    return (
        f"{path} was refused unread: its pickle asks for {dotted}, which is no part of a tensor and could run code; "
        "get the weights as safetensors, or save a plain state dict"
    )


def _check_zip(file: IO[bytes], path: Path) -> None:
    size = file.seek(0, io.SEEK_END)
    num_members = _declared_members(file, size, path)
    if num_members > MAX_MEMBERS or size > MAX_BYTES:
        raise WeightsError(
            f"{path} declares {num_members} members in {size} bytes; at most {MAX_MEMBERS} and {MAX_BYTES} are read"
        )
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            sizes = {info.filename.partition("/")[2]: info.file_size for info in members}
            names = {name.partition("/")[0] for name in archive.namelist()}
            if "constants.pkl" in sizes or any(name.startswith("code/") for name in sizes):
                raise WeightsError(
                    f"{path} is a TorchScript archive, which is code and is not run; get the model's state dict, or "
                    "save one where the file is trusted: torch.save(torch.jit.load(FILE).state_dict(), NEW)"
                )
            _check_directory(members, size, path)
            if "data.pkl" not in sizes or len(names) != 1:
                arrays = " (it looks like NumPy's .npz)" if any(n.endswith(".npy") for n in archive.namelist()) else ""
                raise WeightsError(f"{path} is a zip archive but no PyTorch checkpoint{arrays}; it has no data.pkl")
            if sizes["data.pkl"] > MAX_PICKLE_BYTES:
                raise WeightsError(f"{path} has a pickle of {sizes['data.pkl']} bytes; at most {MAX_PICKLE_BYTES}")
            if (bad := archive.testzip()) is not None:
                raise WeightsError(f"{path} is damaged: the checksum of its member {bad} is wrong; copy it again")
            refs = scan_pickle(io.BytesIO(archive.read(f"{names.pop()}/data.pkl")), path)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is damaged: {error}; copy it again") from error
    for ref in refs:
        if ref.num_bytes != (found := sizes.get(f"data/{ref.key}")):
            raise WeightsError(
                f"{path} is damaged or forged: storage {ref.key} is declared as {ref.num_bytes} bytes, "
                f"and the archive holds {found or 0}"
            )


def _declared_members(file: IO[bytes], size: int, path: Path) -> int:
    """Return the number of members that the end of a zip declares, without reading the directory."""
    file.seek(max(0, size - 42))
    tail = file.read()
    if len(tail) < 42 or tail[20:24] != b"PK\x05\x06" or tail[40:] != b"\0\0":
        raise WeightsError(f"{path} is cut short or damaged: it begins as a zip and does not end as one; copy it again")
    if tail[:4] != b"PK\x06\x07":
        return struct.unpack_from("<H", tail, 30)[0]
    offset = struct.unpack_from("<Q", tail, 8)[0]
    file.seek(min(offset, size))
    record = file.read(56)
    if len(record) < 56 or record[:4] != b"PK\x06\x06":
        raise WeightsError(f"{path} is damaged: the directory of the zip is not where its end says; copy it again")
    return struct.unpack_from("<Q", record, 32)[0]


def _check_directory(members: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    """Refuse what torch.save never writes and bombs are made of: compression, overlaps, two members of one name."""
    declared = sum(info.file_size for info in members)
    packed = [info.filename for info in members if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1]
    if packed or declared > size:
        why = f"its member {packed[0]} is compressed" if packed else "its members overlap"
        raise WeightsError(
            f"{path} was refused unread: it is a zip of {size} bytes that unpacks to {declared} ({why}), "
            "which torch.save never writes"
        )
    # Without regard to case, as PyTorch's reader looks members up.
    if len({info.filename.lower() for info in members}) != len(members) or min(i.header_offset for i in members):
        raise WeightsError(f"{path} was refused unread: its zip directory is ambiguous, as torch.save never writes it")


def _check_legacy(file: IO[bytes], path: Path) -> None:
    """Check the five pickles in front of the storages: magic number, version, system, object, storage keys."""
    size = file.seek(0, io.SEEK_END)
    if size > MAX_BYTES:
        raise WeightsError(f"{path} has {size} bytes; at most {MAX_BYTES} are read")
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    try:
        first = [arg for op, arg, _ in pickletools.genops(stream) if op.name == "LONG1"]
    except NONSENSE as error:
        raise WeightsError(f"{path} is no file of weights that is known here") from error
    if first != [_LEGACY_MAGIC]:
        stream.seek(0)
        scan_pickle(stream, path)  # names what it asks for, where it asks for something
        raise WeightsError(
            f"{path} is a bare pickle, not a checkpoint of torch.save; save a state dict with torch.save"
        )
    refs = [ref for _ in range(4) for ref in scan_pickle(stream, path)]
    declared = sum({ref.key: ref.num_bytes for ref in refs}.values())
    if declared > size or len({*refs}) != len({ref.key for ref in refs}):
        raise WeightsError(
            f"{path} is cut short or forged: its tensors are declared as {declared} bytes in a file of {size}"
        )
