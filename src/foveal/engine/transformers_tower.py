"""Vision towers of Hugging Face's transformers, by name or in a folder."""

import inspect
import json
import logging
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from foveal.backbone.licence import UNKNOWN
from foveal.backbone.transform import not_held, pixel_statistics, side_of
from foveal.engine.tower import RANDOM, Run, Tower, fill, imported, made, no_patches, tower_config, tried
from foveal.errors import FovealError

logger = logging.getLogger(__name__)


def transformers_tower(source: str, name: str, weights: str, seed: int) -> Tower:
    """Return the tower of a model's name or folder; see `foveal.engine.foreign.open_tower`."""
    transformers = imported("transformers")
    module = _network(transformers, source, name, weights, seed)
    settings = module.config
    patch, size = getattr(settings, "patch_size", None), getattr(settings, "image_size", None)
    norm_layer = next((getattr(module, n) for n in ("layernorm", "norm", "post_layernorm") if hasattr(module, n)), None)
    if not isinstance(patch, int) or not isinstance(size, int) or norm_layer is None:
        raise no_patches(source)
    size = size // patch * patch
    run = _run(module, norm_layer, patch)
    num_prefix, width = tried(run, size)
    data, (mean, std) = _preprocessing(source, name, transformers)
    crop, resize = _sizes(data, patch, size)
    for text in not_held(data, {"resize_size": resize, "crop_size": crop}):
        logger.warning(
            "%s: ignored: its preprocessing says %s; here short side to %d, crop %d", source, text, resize, crop
        )
    depth, num_heads = settings.num_hidden_layers, settings.num_attention_heads
    return Tower(
        name=source,
        library="transformers",
        module=module,
        run=run,
        config=tower_config(source, width, depth, num_heads, patch, size, num_prefix),
        mean=mean,
        std=std,
        crop_size=crop,
        resize_size=resize,
        is_fixed=False,
        licence=UNKNOWN,
    )


def _network(transformers: Any, source: str, name: str, weights: str, seed: int) -> Any:
    """Return the vision network with its weights; code beside them is never run."""
    settings = made(source, lambda: transformers.AutoConfig.from_pretrained(name, trust_remote_code=False))
    if weights:
        whole = made(source, lambda: transformers.AutoModel.from_config(settings, trust_remote_code=False), seed)
    else:
        how = {"use_safetensors": True, "trust_remote_code": False}
        whole = made(source, lambda: transformers.AutoModel.from_pretrained(name, **how))
    module = getattr(whole, "vision_model", whole)
    if weights not in ("", RANDOM):
        fill(source, module, weights)
    return module


def _run(module: Any, norm_layer: Any, patch: int) -> Run:
    extra = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in _arguments(module) else {}

    def run(images: Tensor, layers: list[int], norm: bool) -> list[tuple[Tensor | None, Tensor]]:
        states = module(pixel_values=images, output_hidden_states=True, **extra).hidden_states
        num_patches = (images.shape[-2] // patch) * (images.shape[-1] // patch)
        found = [norm_layer(states[i + 1]) if norm else states[i + 1] for i in layers]
        return [(x[:, :-num_patches] if x.shape[1] > num_patches else None, x[:, -num_patches:]) for x in found]

    return run


def _arguments(module: nn.Module) -> set[str]:
    code = cast(Any, type(module).forward)
    return set(inspect.signature(code).parameters)


def _preprocessing(source: str, name: str, transformers: Any) -> tuple[dict[str, Any], tuple[list[float], list[float]]]:
    """Return the settings that lie beside a Hugging Face model, and the statistics of channels in 0..1 they mean."""
    path = made(source, lambda: transformers.utils.cached_file(name, "preprocessor_config.json"))
    data = json.loads(Path(path).read_text())
    if (statistics := pixel_statistics(data, channels=3)) is None:
        raise FovealError(f"{source}: its preprocessor_config.json has no image_mean and image_std; add them")
    return data, statistics


def _sizes(data: dict[str, Any], patch: int, image_size: int) -> tuple[int, int]:
    """Return the crop and the shorter side before it: the processor's own in whole patches, else the network's size.

    The two differ for DINOv2: its positions are those of 518 pixels, and its processor crops 224.
    """
    crop = side_of(data.get("crop_size")) if data.get("do_center_crop") is not False else None
    crop = (crop if isinstance(crop, int) else 0) // patch * patch or image_size
    size = data.get("size", {})
    short = (size.get("shortest_edge") or size.get("height") or crop) if isinstance(size, dict) else size
    return crop, max(short, crop)
