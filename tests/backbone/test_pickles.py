"""Hostile and damaged pickle files: nothing in them runs, nothing grows for them, no flipped bit passes."""

import io
import os
import pickle
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from foveal.backbone.convert import convert
from foveal.backbone.doctor import diagnose
from foveal.backbone.formats import load_checkpoint
from foveal.backbone.pickles import MAX_MEMBERS, load_pickle
from foveal.backbone.vit import VisionTransformer
from foveal.errors import WeightsError

Network = Callable[..., VisionTransformer]


class Calls:
    """An object whose pickle calls `function(*arguments)` when it is read."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable, tuple[object, ...]]:
        return self.call


class PersistentCode(pickle.Pickler):
    """Writes a pickle whose persistent id carries the payload."""

    def persistent_id(self, thing: object) -> object:
        return ("storage", Calls(*thing), "0", "cpu", 3) if isinstance(thing, list) else None


def _zip_with(path: Path, data: bytes, **more: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        for name, content in more.items():
            archive.writestr(f"archive/{name}", content)


def _swap(path: Path, data: bytes) -> None:
    """Put another pickle into a real checkpoint."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, data if name.endswith("data.pkl") else content)


def _attribute_of_attribute(canary: str) -> bytes:
    """().__class__.__base__.__subclasses__ by getattr, then the canary's file, in opcodes written by hand."""
    return (
        b"\x80\x02c__builtin__\ngetattr\nc__builtin__\ngetattr\n)X\x09\x00\x00\x00__class__\x86RX\x08\x00\x00\x00__base__\x86R0"
        + f"cos\nsystem\n(X{chr(len(canary) + 6)}\0\0\0touch {canary}tR.".encode("latin-1")
    )


def _plant(path: Path, kind: str, canary: Path) -> None:
    touch = f"touch {canary}"
    with_code = {
        "os_system": Calls(os.system, touch),
        "eval": Calls(eval, f"__import__('os').mknod({str(canary)!r})"),
        "exec": Calls(exec, f"import os; os.mknod({str(canary)!r})"),
        "subprocess": Calls(subprocess.check_call, ["touch", str(canary)]),
        "pathlib_touch": Calls(Path.touch, canary),
    }
    if kind in with_code:
        torch.save({"cls_token": torch.zeros(3), "payload": with_code[kind]}, path)
    elif kind == "nested_in_a_state_dict":
        torch.save({"teacher": {"backbone.norm.weight": [torch.zeros(3), {"x": Calls(os.system, touch)}]}}, path)
    elif kind == "stack_global":
        _zip_with(path, pickle.dumps(Calls(os.system, touch), protocol=4))
    elif kind == "stack_global_without_frame":
        text = b"\x8c\x05posix\x8c\x06system\x93" + b"X" + struct.pack("<I", len(touch)) + touch.encode() + b"\x85R."
        _zip_with(path, b"\x80\x02" + text)
    elif kind == "inst":
        _zip_with(path, f"(S'{touch}'\nios\nsystem\n.".encode())
    elif kind == "persistent_id":
        buffer = io.BytesIO()
        PersistentCode(buffer, protocol=2).dump({"x": [os.system, touch]})
        _zip_with(path, buffer.getvalue())
    elif kind == "swapped_into_a_checkpoint":
        torch.save({"cls_token": torch.zeros(3)}, path)
        _swap(path, pickle.dumps(Calls(os.system, touch), protocol=2))
    elif kind == "dunder_lookup":
        _zip_with(path, _attribute_of_attribute(str(canary)))
    elif kind == "torchscript":
        torch.jit.save(torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2)), path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("code/canary.py", f"open({str(canary)!r}, 'w')")
    elif kind == "legacy":
        torch.save({"x": Calls(os.system, touch)}, path, _use_new_zipfile_serialization=False)
    elif kind == "bare_pickle":
        path.write_bytes(pickle.dumps({"x": Calls(os.system, touch)}, protocol=2))
    elif kind == "bare_pickle_protocol_0":
        path.write_bytes(pickle.dumps({"x": Calls(os.system, touch)}, protocol=0))
    elif kind == "legacy_tar":
        with tarfile.open(path, "w") as archive:
            for name in ("storages", "tensors", "pickle"):
                data = pickle.dumps(Calls(os.system, touch), protocol=2)
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    elif kind == "numpy_objects":
        buffer = io.BytesIO()
        np.save(buffer, np.array([Calls(os.system, touch)], dtype=object), allow_pickle=True)
        path.write_bytes(buffer.getvalue())
    elif kind == "numpy_objects_in_a_zip":
        np.savez(path.with_suffix(".npz"), a=np.array([Calls(os.system, touch)], dtype=object))
        path.with_suffix(".npz").rename(path)
    elif kind == "whole_module":
        module = nn.Linear(2, 3)
        module.payload = Calls(os.system, touch)
        torch.save(module, path)
    else:
        raise AssertionError(kind)


PAYLOADS = {
    "os_system": "its pickle asks for posix.system",
    "eval": r"its pickle asks for __builtin__\.eval",
    "exec": r"its pickle asks for __builtin__\.exec",
    "subprocess": r"its pickle asks for commands\.check_call",
    "pathlib_touch": r"its pickle asks for __builtin__\.getattr",
    "nested_in_a_state_dict": r"its pickle asks for posix\.system",
    "stack_global": "its pickle uses FRAME, which torch.save does not write by default",
    "stack_global_without_frame": "its pickle uses SHORT_BINUNICODE",
    "inst": "its pickle uses STRING",
    "persistent_id": r"its pickle asks for posix\.system",
    "swapped_into_a_checkpoint": r"its pickle asks for posix\.system",
    "dunder_lookup": r"its pickle asks for __builtin__\.getattr",
    "torchscript": "is a TorchScript archive, which is code",
    "legacy": r"its pickle asks for posix\.system",
    "bare_pickle": r"its pickle asks for posix\.system",
    "bare_pickle_protocol_0": "is no file of weights that is known here",
    "legacy_tar": "is a tar archive",
    "numpy_objects": "is a NumPy array",
    "numpy_objects_in_a_zip": "no PyTorch checkpoint .it looks like NumPy's .npz",
    "whole_module": r"holds a whole module \(torch\.nn\.modules\.linear\.Linear\), which is code",
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", PAYLOADS)
def test_planted_code_is_named_and_never_runs(kind: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    _plant(path, kind, canary)
    assert path.stat().st_size
    for read in (load_checkpoint, diagnose, lambda file: convert(file, tmp_path / "out", to="foveal"), load_pickle):
        if read is load_pickle and kind in ("numpy_objects", "legacy_tar", "bare_pickle_protocol_0"):
            continue  # the door before it tells these apart by their first bytes
        with pytest.raises(WeightsError, match=PAYLOADS[kind]):
            read(path)
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["os_system", "eval", "legacy", "bare_pickle", "dunder_lookup"])
def test_the_planted_code_would_run_elsewhere(kind: str, tmp_path: Path) -> None:
    """So that the test above can fail: PyTorch without weights_only, or pickle itself, does run these payloads."""
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    _plant(path, kind, canary)
    try:
        if kind == "dunder_lookup":
            pickle.loads(_attribute_of_attribute(str(canary)))
        elif kind == "bare_pickle":
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
    except Exception:  # what happens after the payload is of no interest
        pass
    assert canary.exists()


def _bomb(path: Path, kind: str) -> None:
    if kind == "compressed":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
            archive.writestr("archive/data/0", bytes(50_000_000))
    elif kind in ("many_members", "overlapping"):
        torch.save({"a": torch.zeros(1000)}, path)
        data = path.read_bytes()
        start = struct.unpack_from("<I", data, len(data) - 6)[0]
        entries = _central_directory(path)
        one = next(entry for entry in entries if b"/data/0" in entry)
        number = MAX_MEMBERS if kind == "many_members" else 9
        copies = [one[:28] + b"\x0c\0" + one[30:46] + b"a/data/%05d" % i + one[46 + 11 :] for i in range(number)]
        directory = b"".join([*entries, *copies])
        count = len(entries) + len(copies)
        end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
        path.write_bytes(data[:start] + directory + end)
    elif kind in ("storage_larger_than_its_member", "storage_without_member"):
        torch.save({"a": torch.zeros(48)}, path)
        with zipfile.ZipFile(path) as archive:
            data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        if kind == "storage_without_member":
            _swap(path, data.replace(b"X\x01\0\0\x000q", b"X\x01\0\0\x007q"))
        else:
            _swap(path, data.replace(b"K\x30t", b"J\x00\x00\x00\x40t"))
    elif kind == "legacy_huge_storage":
        torch.save({"a": torch.zeros(48)}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes().replace(b"K\x30Nt", b"\x8a\x06\0\0\0\0\0\x10Nt"))
    elif kind == "bytearray":
        _zip_with(path, b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\0\0\0\0\0\x10\x85R.")
    elif kind == "calls_a_type":
        _zip_with(path, b"\x80\x02ctorch\nFloatStorage\n\x8a\x06\0\0\0\0\0\x10\x85R.")
    elif kind == "repeated_view":
        torch.save({"pos_embed": torch.zeros(1).expand(1, 10**7, 10**5), "cls_token": torch.zeros(1, 1, 3)}, path)
    elif kind == "repeated_view_in_a_head":
        head = torch.zeros(1).expand(10**6, 10**6)
        torch.save({"backbone.pos_embed": torch.zeros(1, 2, 3), "dino_head.last_layer.weight_v": head}, path)
    elif kind == "huge_zip64_count":
        torch.save({"a": torch.zeros(3)}, path)
        data = bytearray(path.read_bytes())
        struct.pack_into("<Q", data, data.rindex(b"PK\x06\x06") + 32, 10**12)
        path.write_bytes(data)
    elif kind == "nested_dictionaries":
        level: dict = {"x": torch.zeros(1)}
        for _ in range(7):
            level = {str(i): level for i in range(30)}
        torch.save(level, path)
    else:
        raise AssertionError(kind)


def _central_directory(path: Path) -> list[bytes]:
    data = path.read_bytes()
    at = struct.unpack_from("<I", data, len(data) - 6)[0]
    entries = []
    while data[at : at + 4] == b"PK\x01\x02":
        name, extra, comment = struct.unpack_from("<3H", data, at + 28)
        entries.append(data[at : at + 46 + name + extra + comment])
        at += 46 + name + extra + comment
    return entries


BOMBS = {
    "compressed": r"that unpacks to 500\d{5} \(its member archive/data\.pkl is compressed\)",
    "many_members": r"declares 2000\d members",
    "overlapping": r"that unpacks to 4\d{4} \(its members overlap\)",
    "storage_larger_than_its_member": "storage 0 is declared as 4294967296 bytes, and the archive holds 192",
    "storage_without_member": "storage 7 is declared as 192 bytes, and the archive holds 0",
    "legacy_huge_storage": "its tensors are declared as 70368744177664 bytes in a file of",
    "bytearray": r"its pickle asks for __builtin__\.bytearray",
    "calls_a_type": "its pickle calls something that is no function",
    "repeated_view": r"its tensors would unfold to 4000000000012 bytes from a file of \d{3,4}$",
    "repeated_view_in_a_head": r"its tensors would unfold to 4000000000024 bytes from a file of \d{3,4}$",
    "huge_zip64_count": "declares 1000000000000 members",
    "nested_dictionaries": "nests more than 8 levels or 200000 values",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bomb_is_refused_before_it_grows(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    _bomb(path, kind)
    with pytest.raises(WeightsError, match=BOMBS[kind]):
        load_checkpoint(path)


@pytest.fixture
def real(random_network: Network, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    tensors = random_network(depth=1, image_size=28).state_dict()
    torch.save(tensors, tmp_path / "real.pth")
    return tmp_path / "real.pth", tensors


@pytest.mark.parametrize("keep", [1, 5, 40, 0.3, 0.7, -1])
def test_cut_file_is_refused(keep: float, real: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = real
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(WeightsError, match=r"is cut short or damaged|is no file of weights"):
        load_checkpoint(path)


def test_every_flipped_bit_is_refused_or_harmless(real: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = real
    data = path.read_bytes()
    places = np.random.default_rng(0).integers(0, 8 * len(data), 150).tolist()
    places += range(8 * (len(data) - 60), 8 * len(data), 7)  # the end of the directory
    refused = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = load_checkpoint(path)[0].state_dict()
        except WeightsError:
            refused += 1
            continue
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items()), place
    assert refused > 0.8 * len(places)


def test_flipped_bit_in_a_tensor_names_its_member(real: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = real
    data = bytearray(path.read_bytes())
    data[data.index(tensors["pos_embed"].numpy().tobytes()) + 5] ^= 4
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"is damaged: the checksum of its member real/data/1 is wrong; copy it"):
        load_checkpoint(path)
    assert not torch.equal(torch.load(path, weights_only=True)["pos_embed"], tensors["pos_embed"])  # PyTorch is silent


def test_legacy_file_is_read_and_said_to_be_unchecked(
    real: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    _, tensors = real
    path = tmp_path / "legacy.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    found = load_checkpoint(path)[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert "nothing in this format shows damage; compare the sha256 with the publisher's" in diagnose(path).warnings
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"is cut short or forged|is damaged or was not written"):
        load_checkpoint(path)


def test_other_things_in_a_checkpoint_are_passed_over(
    real: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    _, tensors = real
    path = tmp_path / "mixed.pth"
    extra = {"epoch": 3, "lr": 0.1, "name": "run", "flags": [True, None, (1, 2)], "shape": torch.Size([2]), "n": 2**70}
    torch.save({"model": tensors, "half": torch.zeros(2, dtype=torch.float16), "dtype": torch.float32, **extra}, path)
    assert torch.equal(load_checkpoint(path)[0].cls_token, tensors["cls_token"])
    shutil.copy(path, tmp_path / "named_anything.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "named_anything.safetensors")[0].norm.bias, tensors["norm.bias"])
