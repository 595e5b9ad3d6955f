"""Monochrome DICOM, written on the spot."""

import io
import sys

import numpy as np
import pytest

from foveal.errors import BadImageError
from foveal.images.decode import DecodeLimits, decode, read_size
from foveal.images.sources import scan

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402 (after the skip)
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)


def dicom(stored: np.ndarray, *, compress: bool = False, syntax: str = ExplicitVRLittleEndian, **tags) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["foveal"])
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    dataset.PixelData = stored.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    if compress:
        dataset.compress(RLELossless, generate_instance_uid=False)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def ramp(dtype: str = "u2") -> np.ndarray:
    return np.arange(35, dtype=dtype).reshape(5, 7)


def reason_of(data: bytes, **options) -> tuple[str, str]:
    with pytest.raises(BadImageError) as caught:
        decode(data, **({"channels": 1} | options))
    return caught.value.reason, str(caught.value)


def test_without_a_window_the_stored_range_becomes_full_scale():
    values = ramp() * 100
    grey = decode(dicom(values, BitsStored=12, HighBit=11), channels=1)
    assert grey.dtype == np.uint16
    assert np.array_equal(grey[:, :, 0], np.rint(values / 4095 * 65535))
    signed = decode(dicom(ramp("i2") - 20, RescaleSlope=2, RescaleIntercept=-1024), channels=1)
    assert np.array_equal(signed[:, :, 0], np.rint((ramp() - 20.0 + 32768) / 65535 * 65535))
    assert np.array_equal(decode(dicom(ramp("u1")), channels=1)[:, :, 0], ramp() * 257)


def test_rescale_then_window():
    """c=40, w=21 over r = 2 v - 10: 0 up to 29.5, full from 49.5 (PS3.3 C.11.2.1.2.1)."""
    tags = {"RescaleSlope": 2, "RescaleIntercept": -10, "WindowCenter": [40, 1], "WindowWidth": [21, 5]}
    r = 2.0 * ramp() - 10
    expected = np.clip((r - 39.5) / 20 + 0.5, 0, 1)
    assert np.array_equal(decode(dicom(ramp(), **tags), channels=1)[:, :, 0], np.rint(65535 * expected))
    exact = decode(dicom(ramp(), VOILUTFunction="LINEAR_EXACT", **tags), channels=1)
    assert np.array_equal(exact[:, :, 0], np.rint(65535 * np.clip((r - 40) / 21 + 0.5, 0, 1)))
    sigmoid = decode(dicom(ramp(), VOILUTFunction="SIGMOID", **tags), channels=1)
    assert np.array_equal(sigmoid[:, :, 0], np.rint(65535 / (1 + np.exp(-4 * (r - 40) / 21))))


def test_monochrome1_is_inverted_and_rgb_is_its_grey():
    low_is_bright = decode(dicom(ramp("u1"), PhotometricInterpretation="MONOCHROME1"), channels=1)
    assert np.array_equal(low_is_bright[:, :, 0], 65535 - ramp() * 257)
    assert np.array_equal(decode(dicom(ramp("u1"))), np.repeat(ramp("u1")[:, :, None], 3, axis=2))


def test_the_first_frame_is_taken_and_rle_is_read():
    frames = np.stack([ramp(), ramp() + 7])
    assert np.array_equal(decode(dicom(frames), channels=1)[:, :, 0], ramp())
    assert np.array_equal(decode(dicom(ramp(), compress=True), channels=1)[:, :, 0], ramp())


def test_what_is_not_read_is_named():
    reason, message = reason_of(dicom(ramp("u1"), PhotometricInterpretation="PALETTE COLOR"))
    assert (reason, "MONOCHROME1 and MONOCHROME2" in message) == ("unsupported_pixels", True)
    assert reason_of(dicom(ramp()), channels=4)[0] == "wrong_channels"
    assert reason_of(dicom(ramp(), WindowCenter=3, WindowWidth=0)) == (
        "corrupt",
        "this DICOM names a WindowWidth of 0.0; repair its header",
    )
    assert reason_of(dicom(ramp()), limits=DecodeLimits(max_pixels=34))[0] == "too_many_pixels"
    assert read_size(dicom(ramp())) == (7, 5)


def test_deflated_files_are_refused():
    assert reason_of(dicom(ramp(), syntax=DeflatedExplicitVRLittleEndian))[1].startswith("deflated DICOM is not read")


def test_a_compression_without_its_decoder_names_it():
    data = dicom(ramp("u1"), compress=True)
    assert decode(data, channels=1).shape == (5, 7, 1)
    start = data.index(b"1.2.840.10008.1.2.5\x00")
    length = int.from_bytes(data[start - 2 : start], "little")
    syntax = b"1.2.840.10008.1.2.4.201\x00"  # High-Throughput JPEG 2000
    changed = data[: start - 2] + len(syntax).to_bytes(2, "little") + syntax + data[start + length :]
    group = changed.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    longer = int.from_bytes(changed[group : group + 4], "little") + len(syntax) - length
    changed = changed[:group] + longer.to_bytes(4, "little") + changed[group + 4 :]
    reason, message = reason_of(changed)
    assert reason == "unsupported_pixels"
    assert "High-Throughput JPEG 2000" in message
    assert "install it, or decompress the file" in message


def test_damaged_bytes_raise_nothing_but_bad_image_errors():
    rng = np.random.default_rng(3)
    source = dicom(ramp(), WindowCenter=3, WindowWidth=9)
    refused = 0
    for number in range(150):
        data = bytearray(source[: len(source) - (number % 4 == 0) * int(rng.integers(1, 60))])
        for _ in range(1 + number % 3):
            data[rng.integers(132, len(data))] = rng.integers(0, 256)
        try:
            decode(bytes(data), channels=1)
        except BadImageError:
            refused += 1
    assert refused > 30


def test_folders_list_dicom_and_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(dicom(ramp()))
    assert scan(tmp_path).rows.column("uri").to_pylist() == ["a.dcm"]
    monkeypatch.setitem(sys.modules, "pydicom", None)
    reason, message = reason_of((tmp_path / "a.dcm").read_bytes())
    assert reason == "needs_extra"
    assert message.endswith("pip install 'foveal[dicom]'")
