"""The evaluation transform that the files beside foreign weights describe, and what in it a card cannot hold.

A card holds bicubic resizing of the short side, a centre crop that is square, and statistics of channels in 0..1.
Everything else that a file says is told in words, never passed over.
"""

from collections.abc import Mapping

from foveal.backbone.variants import BackboneConfig

CROP_SIZE, RESIZE_SIZE = 224, 256  # of the published evaluation
BICUBIC = 3  # Pillow's number

# What changes no pixel of the picture, or has been read.
_HEEDED = {"size", "crop_size", "image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize"}
_BOOKKEEPING = {
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "_valid_processor_keys",
    "data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "default_to_square",
}  # fmt: skip
_OURS: dict[str, object] = {"do_resize": True, "do_center_crop": True, "do_convert_rgb": True, "resample": BICUBIC}
_OURS_IN_TIMM = {"interpolation": "bicubic", "crop_mode": "center"}


def transform_of(
    config: BackboneConfig, *, preprocessor: Mapping[str, object], timm: Mapping[str, object]
) -> tuple[dict[str, object], list[str], list[str]]:
    """Return the fields of a card, what of them is an assumption, and what the files say and the card does not hold.

    Args:
        config: of the network.
        preprocessor: a preprocessor_config.json of Hugging Face; may be empty.
        timm: the pretrained_cfg of a timm config.json; may be empty.

    Raises:
        TypeError, IndexError, ZeroDivisionError: values that make no sense.
    """
    assumed: list[str] = []
    fields = _sizes(config, preprocessor, timm, assumed) | _statistics(config, preprocessor, timm, assumed)
    ignored = not_held(preprocessor, fields)
    ignored += [f"{name} {timm[name]!r}" for name, ours in _OURS_IN_TIMM.items() if timm.get(name, ours) != ours]
    shape = timm.get("input_size")
    if isinstance(shape, list) and len(shape) == 3 and shape[1] != shape[2]:
        ignored.append(f"input_size {shape}")
    return fields, assumed, ignored


def pixel_statistics(preprocessor: Mapping[str, object], *, channels: int) -> tuple[list[float], list[float]] | None:
    """Return mean and std for channels in 0..1 that do what a Hugging Face processor does, or None if it has none.

    It computes (x f - mean) / std for x in 0..255, f being `rescale_factor`: the same as
    (x / 255 - mean / s) / (std / s) with s = 255 f. Without normalisation mean is 0 and std 1; without rescaling
    f is 1.
    """
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if preprocessor.get("do_normalize") is False:
        mean, std = [0.0] * channels, [1.0] * channels
    if mean is None or std is None:
        return None
    factor = 1.0 if preprocessor.get("do_rescale") is False else preprocessor.get("rescale_factor", 1 / 255)
    scale = 255 * factor  # type: ignore[operator]
    if abs(scale - 1) < 1e-6:  # 1/255 as somebody rounded it
        return mean, std  # type: ignore[return-value]
    return [value / scale for value in mean], [value / scale for value in std]  # type: ignore[attr-defined]


def not_held(preprocessor: Mapping[str, object], fields: Mapping[str, object]) -> list[str]:
    """Say what of a preprocessor_config.json a card does not hold, with its value."""
    found = [f"{name} {preprocessor[name]}" for name, ours in _OURS.items() if preprocessor.get(name, ours) != ours]
    known = {*_HEEDED, *_BOOKKEEPING, *_OURS}
    found += [
        f"{name} {value}" for name, value in preprocessor.items() if name not in known and value not in (None, False)
    ]
    held = {
        "size": [fields["resize_size"], {"shortest_edge": fields["resize_size"]}],
        "crop_size": [fields["crop_size"], {"height": fields["crop_size"], "width": fields["crop_size"]}],
    }
    return found + [
        f"{name} {preprocessor[name]}" for name in held if preprocessor.get(name) not in (None, *held[name])
    ]


def _sizes(
    config: BackboneConfig, preprocessor: Mapping[str, object], timm: Mapping[str, object], assumed: list[str]
) -> dict[str, object]:
    crop, size = side_of(preprocessor.get("crop_size")), preprocessor.get("size")
    short = size.get("shortest_edge") if isinstance(size, dict) else size
    if preprocessor.get("do_center_crop") is not False and crop is not None and short is not None:
        return {"crop_size": crop, "resize_size": short}
    if "input_size" in timm:
        side, share = timm["input_size"][-1], timm.get("crop_pct", 1.0)  # type: ignore[index]
        return {"crop_size": side, "resize_size": round(side / share)}
    # Without a crop the whole picture goes in, which a card does not hold; its size is the nearest to that.
    whole = side_of(size) or short if preprocessor.get("do_center_crop") is False else None
    if isinstance(whole, int) and whole >= config.patch_size and whole % config.patch_size == 0:
        assumed.append(f"image sizes: short side to {whole}, crop {whole}")
        return {"crop_size": whole, "resize_size": whole}
    fits = config.image_size >= CROP_SIZE and CROP_SIZE % config.patch_size == 0
    side = CROP_SIZE if fits else config.image_size
    resize = round(side * RESIZE_SIZE / CROP_SIZE)
    assumed.append(f"image sizes: short side to {resize}, crop {side}")
    return {"crop_size": side, "resize_size": resize}


def side_of(size: object) -> object:
    """Return the side of a square size, None where it is none."""
    if isinstance(size, dict) and "height" in size:
        return size["height"] if size["height"] == size.get("width", size["height"]) else None
    return None if isinstance(size, dict) else size


def _statistics(
    config: BackboneConfig, preprocessor: Mapping[str, object], timm: Mapping[str, object], assumed: list[str]
) -> dict[str, object]:
    given = {"image_mean": timm.get("mean"), "image_std": timm.get("std"), **preprocessor}
    if found := pixel_statistics(given, channels=config.channels):
        return {"mean": found[0], "std": found[1]}
    if config.channels == 3:
        assumed.append("channel statistics: those of ImageNet")
        return {}
    assumed.append(f"channel statistics: mean 0 and std 1 for {config.channels} channels; put yours into the card")
    return {"mean": [0.0] * config.channels, "std": [1.0] * config.channels}
