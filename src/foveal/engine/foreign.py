"""Backbones of other libraries behind the same call: "timm:NAME", "hf:NAME_OR_FOLDER", "open_clip:NAME/PRETRAINED".

The libraries (extra `foreign`) are imported here and nowhere else, and only when such a name is asked for. Weights are
the library's own pretrained ones, found by it in its cache or fetched by it. "#FILE" after the name takes them from a
file, which is opened here and not by the library, and "#random" draws them from a fixed seed, to try an architecture
without weights. Code that comes with a model is never run.

What `encode` gives are patch tokens on a grid: of a vision transformer, or the last feature map of another network of
timm. A tower without a class token (SigLIP) gives the mean of its patches in its place. Every token is after the
tower's final norm and before any projection.
"""

import importlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from foveal.backbone.card import CARD, Card, read_card
from foveal.backbone.containers import read_container
from foveal.backbone.licence import OWN, UNKNOWN, Licence, licence_named
from foveal.backbone.transform import not_held, pixel_statistics, side_of
from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import Tokens, layer_numbers
from foveal.backbone.weights import weights_file
from foveal.engine.base import Precision
from foveal.engine.identity import identity_of
from foveal.errors import FovealError, nearest

logger = logging.getLogger(__name__)

PREFIXES = ("timm:", "hf:", "open_clip:")
RANDOM = "random"

# (images, numbers of blocks in ascending order, apply the final norm) -> (prefix tokens or None, patches) of each.
Run = Callable[[Tensor, list[int], bool], list[tuple[Tensor | None, Tensor]]]


@dataclass(frozen=True)
class Tower:
    """An image tower of another library.

    Attributes:
        name: as asked for.
        library: its name, for the version.
        module: the network.
        run: gives the tokens of chosen blocks.
        config: sizes, of a custom variant.
        mean: of each channel, in 0..1.
        std: of each channel, in 0..1.
        crop_size: pixels of a side that the network is given.
        resize_size: pixels of the shorter side before that crop.
        is_fixed: takes images of config.image_size only.
        licence: of the library's pretrained weights.
    """

    name: str
    library: str
    module: nn.Module
    run: Run
    config: BackboneConfig
    mean: list[float]
    std: list[float]
    crop_size: int
    resize_size: int
    is_fixed: bool
    licence: Licence


class ForeignEngine:
    """Runs an image tower of another library without gradients: normalised images in, float32 tokens out."""

    def __init__(self, tower: Tower, *, precision: Precision = "fp32", device: str | torch.device = "cpu") -> None:
        if precision not in ("fp32", "bf16"):
            raise FovealError(f"precision='{precision}' of {tower.name}; choose fp32 or bf16")
        self.tower, self.precision, self.device = tower, precision, torch.device(device)
        tower.module.to(self.device).eval().requires_grad_(False)

    @property
    def description(self) -> dict[str, str]:
        """Return what a stamp says of the engine."""
        version = importlib.metadata.version(self.tower.library)
        return {
            "name": self.tower.library,
            "precision": self.precision,
            "device": self.device.type,
            "version": f"{version}, torch {torch.__version__}",
        }

    @property
    def identity(self) -> str:
        """Return the hash that tells this network from others; see `identity_of`."""
        return identity_of(self.tower.module, self.tower.config, architecture=self.tower.name.partition("#")[0])

    def settle(
        self, images: Iterable[Tensor], layers: Sequence[int] | None = None, *, folder: Path | None = None
    ) -> "ForeignEngine":
        """Return this engine: it has nothing to decide."""
        return self

    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of the last block after the final norm; `batch` is (B, 3, H, W) float32, normalised."""
        return self.intermediate(batch, 1)[0]

    @torch.inference_mode()
    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks (the last n, or a list of numbers from 0), in ascending order.

        Raises:
            FovealError: blocks that do not exist, or a size that the tower does not take.
        """
        config = self.tower.config
        wanted = layer_numbers(layers, depth=config.depth, what=self.tower.name)
        height, width = batch.shape[-2:]
        if self.tower.is_fixed and (height, width) != (config.image_size, config.image_size):
            raise FovealError(
                f"{self.tower.name} takes {config.image_size} x {config.image_size} pixels, not {height} x {width}"
            )
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.tower.run(batch.to(self.device), list(wanted), norm)
        return [_tokens(prefix, patches) for prefix, patches in found]


def is_foreign(source: object) -> bool:
    """Tell whether a model's name is one of another library.

    Example:
        >>> is_foreign("timm:vit_small_patch14_dinov2"), is_foreign("runs/model")
        (True, False)
    """
    return isinstance(source, str) and source.startswith(PREFIXES)


def check_prefix(source: object) -> None:
    """Refuse the prefix of a library that is not known here; FovealError names the nearest."""
    prefix, colon, rest = str(source).partition(":")
    if not colon or rest.startswith("//") or is_foreign(source) or Path(str(source)).exists():
        return
    raise FovealError(
        f"{prefix}: is no library that is known here; choose {', '.join(PREFIXES)}{nearest(f'{prefix}:', PREFIXES)}"
    )


def load_foreign(
    source: str, *, precision: Precision = "fp32", device: str | torch.device = "cpu"
) -> tuple[ForeignEngine, Card]:
    """Return the engine of another library's backbone, and a card with its preprocessing.

    Args:
        source: "timm:NAME", "hf:NAME_OR_FOLDER" or "open_clip:NAME/PRETRAINED", with "#FILE" or "#random" behind.
        precision: "fp32" or "bf16".
        device: a torch device.

    Raises:
        FovealError: the library is missing or does not fit torch, the name is unknown to it, its weights are not to be
            had, or the architecture has no patch tokens; the message says which and what to do.
    """
    tower = open_tower(source)
    config, weights = tower.config, source.partition("#")[2]
    engine = ForeignEngine(tower, precision=precision, device=device)
    card = Card(
        name=source,
        backbone=config,
        mean=tower.mean,
        std=tower.std,
        crop_size=tower.crop_size,
        resize_size=max(tower.resize_size, tower.crop_size),
        licence={"": tower.licence, RANDOM: OWN}.get(weights, UNKNOWN),
        lineage={"library": tower.library, "weights": weights or "pretrained"},
        sha256={"state_dict": engine.identity},
    )
    return engine, card


def open_tower(source: str, *, seed: int = 0) -> Tower:
    """Return an image tower of another library as it makes it; see `load_foreign`. `seed` is of "#random" weights."""
    library, _, rest = source.partition(":")
    name, _, weights = rest.partition("#")
    if not name:
        raise FovealError(f"{source} names no model; give e.g. timm:vit_small_patch14_dinov2")
    make = {"timm": _timm, "hf": _transformers, "open_clip": _open_clip}[library]
    return make(source, name, weights, seed)


def holds_foreign(model: str | Path) -> bool:
    """Tell whether a model folder holds a network of another library, as distillation writes them."""
    return (Path(model) / CARD).is_file() and is_foreign(read_card(Path(model)).backbone.variant)


def load_foreign_folder(
    folder: str | Path, *, precision: Precision = "fp32", device: str | torch.device = "cpu"
) -> tuple[ForeignEngine, Card]:
    """Return the engine and the card of a model folder that `holds_foreign`; errors as of `load_foreign`."""
    card = read_card(Path(folder))
    tower = open_tower(f"{card.backbone.variant.partition('#')[0]}#{weights_file(folder)}")
    return ForeignEngine(tower, precision=precision, device=device), card


def _timm(source: str, name: str, weights: str, seed: int) -> Tower:
    timm = _import("timm")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:3]) or "timm.list_models() lists them"
        raise FovealError(f"{source}: timm {timm.__version__} has no model '{name}'; near: {near}")
    how: dict[str, Any] = {"num_classes": 0, "pretrained": not weights}
    is_vit = name.startswith(("vit_", "deit", "eva", "beit"))
    how |= {"dynamic_img_size": True} if is_vit else {}
    module = _make(source, lambda: timm.create_model(name, **how), seed)
    if weights not in ("", RANDOM):
        _fill(source, module, weights)
    data = timm.data.resolve_model_data_config(module)
    tower = _timm_vit if hasattr(module, "num_prefix_tokens") else _timm_map
    run, config, is_fixed = tower(source, module, data["input_size"][1])
    return Tower(
        name=source,
        library="timm",
        module=module,
        run=run,
        config=config,
        mean=list(data["mean"]),
        std=list(data["std"]),
        crop_size=config.image_size,
        resize_size=round(config.image_size / data["crop_pct"]),
        is_fixed=is_fixed,
        licence=licence_named(module.pretrained_cfg.get("license") or "unknown"),
    )


def _timm_vit(source: str, module: Any, image_size: int) -> tuple[Run, BackboneConfig, bool]:
    """Return how to run one of timm's vision transformers, its sizes, and whether it takes one image size only."""
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if patch is None or patch[0] != patch[1]:
        raise FovealError(_no_patches(source))
    size = image_size // patch[0] * patch[0]

    def run(images: Tensor, layers: list[int], norm: bool) -> list[tuple[Tensor | None, Tensor]]:
        found = module.forward_intermediates(
            images, indices=layers, return_prefix_tokens=True, norm=norm, output_fmt="NLC", intermediates_only=True
        )
        return (
            [(prefix, patches) for patches, prefix in found] if module.num_prefix_tokens else [(None, p) for p in found]
        )

    config = _config(
        source, module.embed_dim, len(module.blocks), _heads(module), patch[0], size, module.num_prefix_tokens
    )
    return run, config, not getattr(module, "dynamic_img_size", False)


def _timm_map(source: str, module: Any, image_size: int) -> tuple[Run, BackboneConfig, bool]:
    """Return the same for a network that ends in a feature map (ConvNeXt, ResNet, Swin).

    The places of its last map are the patches; its pooled feature, as the classifier would get it, is the class token.
    It counts as one block, since the maps before have other sizes.
    """
    stride = module.feature_info[-1]["reduction"] if getattr(module, "feature_info", None) else None
    if not isinstance(stride, int) or not hasattr(module, "forward_head"):
        raise FovealError(_no_patches(source))

    def run(images: Tensor, layers: list[int], norm: bool) -> list[tuple[Tensor | None, Tensor]]:
        found = module.forward_features(images)
        pooled = module.forward_head(found, pre_logits=True)
        if found.ndim == 4:
            channels_last = getattr(module, "output_fmt", "NCHW") == "NHWC"
            found = found.flatten(1, 2) if channels_last else found.flatten(2).transpose(1, 2)
        return [(pooled[:, None], found)]  # mixers have tokens all along

    config = _config(source, module.num_features, 1, 1, stride, image_size // stride * stride, 1)
    return run, config, bool(getattr(getattr(module, "patch_embed", None), "strict_img_size", False))


def _transformers(source: str, name: str, weights: str, seed: int) -> Tower:
    transformers = _import("transformers")
    settings = _make(source, lambda: transformers.AutoConfig.from_pretrained(name, trust_remote_code=False))
    if weights:
        whole = _make(source, lambda: transformers.AutoModel.from_config(settings, trust_remote_code=False), seed)
    else:
        how = {"use_safetensors": True, "trust_remote_code": False}
        whole = _make(source, lambda: transformers.AutoModel.from_pretrained(name, **how))
    module = getattr(whole, "vision_model", whole)
    if weights not in ("", RANDOM):
        _fill(source, module, weights)
    settings = module.config
    patch, size = getattr(settings, "patch_size", None), getattr(settings, "image_size", None)
    norm_layer = next((getattr(module, n) for n in ("layernorm", "norm", "post_layernorm") if hasattr(module, n)), None)
    if not isinstance(patch, int) or not isinstance(size, int) or norm_layer is None:
        raise FovealError(_no_patches(source))
    extra = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in _arguments(module) else {}

    def run(images: Tensor, layers: list[int], norm: bool) -> list[tuple[Tensor | None, Tensor]]:
        states = module(pixel_values=images, output_hidden_states=True, **extra).hidden_states
        num_patches = (images.shape[-2] // patch) * (images.shape[-1] // patch)
        found = [norm_layer(states[i + 1]) if norm else states[i + 1] for i in layers]
        return [(x[:, :-num_patches] if x.shape[1] > num_patches else None, x[:, -num_patches:]) for x in found]

    size = size // patch * patch
    with torch.inference_mode():
        prefix = run(torch.zeros(1, 3, size, size), [0], False)[0][0]
    num_prefix = 0 if prefix is None else prefix.shape[1]
    data, (mean, std) = _preprocessing(source, name, transformers)
    crop, resize = _sizes(data, patch, size)
    for text in not_held(data, {"resize_size": resize, "crop_size": crop}):
        logger.warning(
            "%s: ignored: its preprocessing says %s; here short side to %d, crop %d", source, text, resize, crop
        )
    return Tower(
        name=source,
        library="transformers",
        module=module,
        run=run,
        config=_config(
            source,
            settings.hidden_size,
            settings.num_hidden_layers,
            settings.num_attention_heads,
            patch,
            size,
            num_prefix,
        ),
        mean=mean,
        std=std,
        crop_size=crop,
        resize_size=resize,
        is_fixed=False,
        licence=UNKNOWN,
    )


def _open_clip(source: str, name: str, weights: str, seed: int) -> Tower:
    open_clip = _import("open_clip")
    name, _, tag = name.partition("/")
    if name not in open_clip.list_models():
        raise FovealError(f"{source}: open_clip has no model '{name}'; open_clip.list_models() lists them")
    if not tag and not weights:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:6])
        raise FovealError(
            f"{source}: which weights? give open_clip:{name}/PRETRAINED (one of {tags}), #FILE or #random"
        )
    if tag and weights:
        raise FovealError(f"{source} names weights twice; leave out /{tag} or #{weights}")
    if tag and not open_clip.get_pretrained_cfg(name, tag):  # open_clip would take it for a path
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise FovealError(f"{source}: open_clip has no weights '{tag}' of {name}; choose {tags}, or #FILE")
    clip = _make(source, lambda: open_clip.create_model(name, pretrained=tag or None), seed)
    if weights not in ("", RANDOM):
        _fill(source, clip, weights)
    module = clip.visual
    trunk = getattr(module, "trunk", module)
    blocks = trunk.transformer.resblocks if hasattr(trunk, "transformer") else getattr(trunk, "blocks", None)
    patch = getattr(module, "patch_size", None) or getattr(getattr(trunk, "patch_embed", None), "patch_size", None)
    if blocks is None or patch is None or patch[0] != patch[1]:
        raise FovealError(_no_patches(source))

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

    size = module.image_size[0] // patch[0] * patch[0]
    with torch.inference_mode():
        prefix, patches = run(torch.zeros(1, 3, size, size), [0], False)[0]
    num_prefix = 0 if prefix is None else prefix.shape[1]
    return Tower(
        name=source,
        library="open_clip_torch",
        module=module,
        run=run,
        config=_config(source, patches.shape[-1], len(blocks), _heads(trunk, blocks), patch[0], size, num_prefix),
        mean=list(module.image_mean),
        std=list(module.image_std),
        crop_size=size,
        resize_size=size,
        is_fixed=True,
        licence=UNKNOWN,
    )


def _tokens(prefix: Tensor | None, patches: Tensor) -> Tokens:
    patches = patches.float()
    if prefix is None:
        return Tokens(patches.mean(dim=1), patches[:, :0], patches)
    prefix = prefix.float()
    return Tokens(prefix[:, 0], prefix[:, 1:], patches)


def _config(
    source: str, width: int, depth: int, num_heads: int, patch_size: int, image_size: int, num_prefix: int
) -> BackboneConfig:
    try:
        return BackboneConfig(
            width=width,
            depth=depth,
            num_heads=num_heads,
            patch_size=patch_size,
            image_size=image_size,
            num_registers=max(0, num_prefix - 1),
        )
    except ValueError as error:
        raise FovealError(f"{source}: {error}") from error


def _heads(module: Any, blocks: Any = None) -> int:
    attention = (blocks if blocks is not None else module.blocks)[0].attn
    return int(attention.num_heads)


def _arguments(module: nn.Module) -> set[str]:
    code = cast(Any, type(module).forward)
    return set(importlib.import_module("inspect").signature(code).parameters)


def _preprocessing(source: str, name: str, transformers: Any) -> tuple[dict[str, Any], tuple[list[float], list[float]]]:
    """Return the settings that lie beside a Hugging Face model, and the statistics of channels in 0..1 they mean."""
    path = _make(source, lambda: transformers.utils.cached_file(name, "preprocessor_config.json"))
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


def _make(source: str, make: Callable[[], Any], seed: int = 0) -> Any:
    """Call a library that may look for files, under the seed of random weights; its errors become ours."""
    if os.environ.get("FOVEAL_OFFLINE", "0") not in ("", "0") and not _import("huggingface_hub").is_offline_mode():
        raise FovealError(
            f"{source}: FOVEAL_OFFLINE forbids the network; set HF_HUB_OFFLINE=1 too, which the library heeds"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise FovealError(
                f"{source} brings code of its own, which is not run; give a model whose architecture the library has"
            ) from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FovealError(
            f"{source} cannot be loaded: {first}; give its weights as {source.partition('#')[0]}#FILE, or #random to "
            "try the architecture"
        ) from error


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise FovealError(f"{error.name} is not installed; pip install 'foveal[foreign]'") from error
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise FovealError(f"{name} cannot be imported: {_misfit(error)}") from error


def _misfit(error: Exception) -> str:
    """Say which torch and torchvision do not fit, and which do: torch 2.N goes with torchvision 0.(N + 15)."""
    try:
        torchvision = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return str(error)
    version, _, build = torch.__version__.partition("+")
    fitting = f"0.{int(version.split('.')[1]) + 15}"
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return (
        f"torch {torch.__version__} and torchvision {torchvision} do not fit each other ({error}); torch {version} "
        f"goes with torchvision {fitting} of the same build: pip install torch=={version} "
        f"'torchvision=={fitting}.*'{index}"
    )


def _fill(source: str, module: nn.Module, weights: str) -> None:
    """Fill a network with the weights in a file: all of them, under their own names or with one prefix before them."""
    path = Path(weights)
    if not path.is_file():
        raise FovealError(f"{source}: {path} does not exist; give a file of weights, or #random")
    tensors, wanted = read_container(path).tensors, module.state_dict()
    first = next(iter(wanted))
    prefixes = [n.removesuffix(first) for n in tensors if n == first or n.endswith(f".{first}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in tensors for name in wanted)]
    if len(whole) > 1:
        raise FovealError(f"{source}: {path} holds several such networks ({', '.join(whole)}); save the one you mean")
    prefix = (whole or prefixes or [""])[0]
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    shape = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    wrong = [f"missing {name}" for name in shape if name not in found]
    wrong += [f"unexpected {name}" for name in found if name not in shape]
    wrong += [
        f"{name} is {tuple(tensor.shape)}, expected {shape[name]}"
        for name, tensor in found.items()
        if name in shape and tuple(tensor.shape) != shape[name]
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise FovealError(f"{source}: {path} does not fit this network: {', '.join(wrong[:3])}{more}")
    module.load_state_dict(found)


def _no_patches(source: str) -> str:
    return f"{source} has no patch tokens on a grid; choose a vision transformer or, of timm, a network with a last map"
