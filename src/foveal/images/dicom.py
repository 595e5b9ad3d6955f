"""Monochrome DICOM by pydicom, as one channel of 16 bits in which more is brighter."""

import importlib
import io
import math
from types import ModuleType
from typing import Any

import numpy as np

from foveal.errors import BadImageError

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(data: bytes) -> bool:
    """Say whether these bytes are a DICOM file: a preamble of 128 bytes, then DICM."""
    return data[128:132] == b"DICM"


def read_dicom(data: bytes, *, max_pixels: int) -> np.ndarray:
    """Return the first frame of a monochrome DICOM image as (H, W, 1) uint16.

    Stored values v become r = RescaleSlope v + RescaleIntercept, where the file names them. Then, linearly to 0..65535:

    | the file has | what becomes 0 and 65535 |
    |---|---|
    | WindowCenter c and WindowWidth w (the first pair) | c - 0.5 -+ (w - 1) / 2, as PS3.3 C.11.2.1.2.1 has it; for the function LINEAR_EXACT c -+ w / 2; SIGMOID is 65535 / (1 + exp(-4 (r - c) / w)) |
    | no window | the lowest and the highest r that BitsStored and the sign allow |

    MONOCHROME1, where low is bright, is inverted last. Lookup tables and padding values are not applied.

    Raises:
        BadImageError: "unsupported_pixels" for colour, float pixels, or a compression that nothing installed decodes;
            "too_many_pixels"; "corrupt"; "needs_extra" (pydicom).
    """  # noqa: E501 (a table's row is a line)
    dataset = _read_header(data, max_pixels)
    _check_compression(dataset)
    stored = importlib.import_module("pydicom.pixels").pixel_array(dataset, index=0, raw=True)
    values = stored.astype(np.float64) * _number(dataset, "RescaleSlope", 1.0) + _number(
        dataset, "RescaleIntercept", 0.0
    )
    grey = np.rint(65535 * _windowed(values, dataset)).astype(np.uint16)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 65535 - grey
    return np.ascontiguousarray(grey[:, :, None])


def read_dicom_size(data: bytes, *, max_pixels: int) -> tuple[int, int]:
    """Return (width, height) from the header alone."""
    dataset = _read_header(data, max_pixels)
    return int(dataset.Columns), int(dataset.Rows)


def _read_header(data: bytes, max_pixels: int) -> Any:
    pydicom = _pydicom()
    if _DEFLATED in data:  # pydicom would inflate the whole of it, however large
        raise BadImageError(
            "unsupported_pixels", "deflated DICOM is not read; convert the file to Explicit VR Little Endian"
        )
    dataset = pydicom.dcmread(io.BytesIO(data))
    photometric = dataset.get("PhotometricInterpretation")
    if "PixelData" not in dataset or photometric not in _MONOCHROME or dataset.get("SamplesPerPixel", 1) != 1:
        raise BadImageError(
            "unsupported_pixels",
            f"DICOM with PhotometricInterpretation {photometric}, {dataset.get('SamplesPerPixel', 1)} samples a pixel; "
            "allowed are MONOCHROME1 and MONOCHROME2 with integer pixel data; convert colour images to PNG",
        )
    if dataset.Rows * dataset.Columns > max_pixels:
        raise BadImageError(
            "too_many_pixels",
            f"the header says {dataset.Columns} x {dataset.Rows} pixels, allowed are {max_pixels} in all; "
            "shrink the image, or raise DecodeLimits.max_pixels",
        )
    return dataset


def _check_compression(dataset: Any) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    try:
        decoder = importlib.import_module("pydicom.pixels").get_decoder(syntax)
        missing = () if decoder.is_available else decoder.missing_dependencies
    except NotImplementedError:
        missing = ("a decoder that pydicom does not have",)
    if missing:
        raise BadImageError(
            "unsupported_pixels",
            f"DICOM compressed as {syntax.name} needs one of: {'; '.join(missing)}; install it, or decompress the file",
        )


def _windowed(values: np.ndarray, dataset: Any) -> np.ndarray:
    """Return the values in 0..1, by the window of the file or by the range of its stored values."""
    centre, width = _number(dataset, "WindowCenter", math.nan), _number(dataset, "WindowWidth", math.nan)
    function = dataset.get("VOILUTFunction", "LINEAR")
    if math.isnan(centre) or math.isnan(width):
        bits, signed = int(dataset.BitsStored), dataset.PixelRepresentation == 1
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        slope, intercept = _number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0)
        low, high = sorted(slope * end + intercept for end in ends)
    elif width <= 0 or (width < 1 and function == "LINEAR"):
        raise BadImageError("corrupt", f"this DICOM names a WindowWidth of {width}; repair its header")
    elif function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    elif function == "LINEAR_EXACT":
        low, high = centre - width / 2, centre + width / 2
    else:
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    if low == high:
        return (values > low).astype(np.float64)
    return np.clip((values - low) / (high - low), 0, 1)


def _number(dataset: Any, name: str, default: float) -> float:
    """Return the number, or the first of several, under a name of the header."""
    value = dataset.get(name)
    if value is None or value == "":
        return default
    number = float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
    if not math.isfinite(number):
        raise BadImageError("corrupt", f"this DICOM names {name}={number}; repair its header")
    return number


def _pydicom() -> ModuleType:
    try:
        return importlib.import_module("pydicom")
    except ImportError as error:
        raise BadImageError(
            "needs_extra", "reading DICOM needs pydicom, which is not installed; pip install 'foveal[dicom]'"
        ) from error
