"""The image towers of open_clip."""

from typing import Any

from torch import Tensor

from foveal.backbone.licence import UNKNOWN
from foveal.engine.tower import RANDOM, Run, Tower, fill, imported, made, no_patches, num_heads_of, tower_config, tried
from foveal.errors import FovealError


def open_clip_tower(source: str, name: str, weights: str, seed: int) -> Tower:
    """Return the image tower of "MODEL/PRETRAINED" or "MODEL"; see `foveal.engine.foreign.open_tower`."""
    open_clip = imported("open_clip")
    name, _, tag = name.partition("/")
    _check_name(open_clip, source, name, tag, weights)
    clip = made(source, lambda: open_clip.create_model(name, pretrained=tag or None), seed)
    if weights not in ("", RANDOM):
        fill(source, clip, weights)
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
