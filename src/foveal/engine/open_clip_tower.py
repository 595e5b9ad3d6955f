"""The image towers of open_clip, alone or with the text towers beside them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from foveal.backbone.licence import UNKNOWN
from foveal.engine.base import Precision
from foveal.engine.tower import RANDOM, Run, Tower, fill, imported, made, no_patches, num_heads_of, tower_config, tried
from foveal.errors import FovealError


def open_clip_tower(source: str, name: str, weights: str, seed: int) -> Tower:
    """Return the image tower of "MODEL/PRETRAINED" or "MODEL"; see `foveal.engine.foreign.open_tower`."""
    return _image_tower(source, _opened(source, name, weights, seed))


class OpenClip:
    """Both towers of a model of open_clip: unit vectors whose cosine says how well text and image fit.

    Args:
        tower: the image tower.
        clip: open_clip's model, which holds it.
        tokenizer: of the model.
        precision: "fp32" or "bf16".
        device: a torch device.

    Attributes:
        squashes: whether images are made square without a crop, as for SigLIP.
    """

    def __init__(
        self, tower: Tower, clip: Any, tokenizer: Any, *, precision: Precision, device: str | torch.device
    ) -> None:
        self.tower, self.tokenizer = tower, tokenizer
        self.precision, self.device = precision, torch.device(device)
        self.squashes = bool(clip.visual.preprocess_cfg["resize_mode"] == "squash")
        self._clip = clip.to(self.device).eval().requires_grad_(False)

    def encode_images(self, batch: Tensor) -> Tensor:
        """Return unit vectors (B, E), float32, of normalised images (B, 3, H, W)."""
        return self._encoded(self._clip.encode_image, batch)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Return unit vectors (T, E), float32. A text that is longer than the context is cut, its end token kept."""
        parts = self.tokenizer(list(texts)).split(batch_size)
        return torch.cat([self._encoded(self._clip.encode_text, part) for part in parts])

    @torch.inference_mode()
    def _encoded(self, encode: Callable[..., Tensor], batch: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return encode(batch.to(self.device), normalize=True).float().cpu()


def open_clip_pair(
    source: str, name: str, weights: str, *, precision: Precision, device: str | torch.device
) -> OpenClip:
    """Return both towers of "MODEL/PRETRAINED" or "MODEL"; see `foveal.engine.foreign.load_open_clip`."""
    clip = _opened(source, name, weights, 0)
    tokenizer = made(source, lambda: imported("open_clip").get_tokenizer(name.partition("/")[0]))
    return OpenClip(_image_tower(source, clip), clip, tokenizer, precision=precision, device=device)


def _opened(source: str, name: str, weights: str, seed: int) -> Any:
    """Return open_clip's own model with its weights."""
    open_clip = imported("open_clip")
    name, _, tag = name.partition("/")
    _check_name(open_clip, source, name, tag, weights)
    clip = made(source, lambda: open_clip.create_model(name, pretrained=tag or None), seed)
    if weights not in ("", RANDOM):
        fill(source, clip, weights)
    return clip


def _image_tower(source: str, clip: Any) -> Tower:
    module = clip.visual
    trunk = getattr(module, "trunk", module)
    blocks = trunk.transformer.resblocks if hasattr(trunk, "transformer") else getattr(trunk, "blocks", None)
    patch = getattr(module, "patch_size", None) or getattr(getattr(trunk, "patch_embed", None), "patch_size", None)
    if blocks is None or patch is None or patch[0] != patch[1]:
        raise no_patches(source)
    size = module.image_size[0] // patch[0] * patch[0]
    run = _run(module)
    num_prefix, width = tried(run, size)
    return Tower(
        name=source,
        library="open_clip_torch",
        module=module,
        run=run,
        config=tower_config(source, width, len(blocks), num_heads_of(trunk, blocks), patch[0], size, num_prefix),
        mean=list(module.image_mean),
        std=list(module.image_std),
        crop_size=size,
        resize_size=size,
        is_fixed=True,
        licence=UNKNOWN,
    )


def _check_name(open_clip: Any, source: str, name: str, tag: str, weights: str) -> None:
    """Refuse models and weights that open_clip does not have, before it looks for them elsewhere."""
    if name not in open_clip.list_models():
        raise FovealError(f"{source}: open_clip has no model '{name}'; open_clip.list_models() lists them")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tag and not weights:
        some = ", ".join(tags[:6])
        raise FovealError(
            f"{source}: which weights? give open_clip:{name}/PRETRAINED (one of {some}), #FILE or #random"
        )
    if tag and weights:
        raise FovealError(f"{source} names weights twice; leave out /{tag} or #{weights}")
    if tag and not open_clip.get_pretrained_cfg(name, tag):  # open_clip would take it for a path
        raise FovealError(f"{source}: open_clip has no weights '{tag}' of {name}; choose {', '.join(tags)}, or #FILE")


def _run(module: Any) -> Run:
    def run(images: Tensor, layers: list[int], norm: bool) -> list[tuple[Tensor | None, Tensor]]:
        found = module.forward_intermediates(
            images,
            indices=layers,
            normalize_intermediates=norm,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        patches = found["image_intermediates"]
        return list(zip(found.get("image_intermediates_prefix") or [None] * len(patches), patches, strict=True))

    return run
