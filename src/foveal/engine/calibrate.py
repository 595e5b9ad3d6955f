"""Int8 for a whole backbone: calibrated on real images, with the layers that suffer most left in float.

Every linear layer is quantised on its own inputs (`quantise`). Then as few layers as are needed go back to float, those
first that do most harm for the time they save, until the accuracy gate passes.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from foveal.backbone.layers import Group
from foveal.backbone.vit import VisionTransformer
from foveal.engine import gate
from foveal.engine.base import Engine
from foveal.engine.gate import Agreement
from foveal.engine.linears import Linear, linears_of
from foveal.engine.quantise import Quantised, mean_of_rows, quantise
from foveal.files import publish_new, staging_of, write_atomically

logger = logging.getLogger(__name__)

CARD, LAYERS = "card.json", "layers.safetensors"
# Images without which int8 is not calibrated: as many again as are compared.
MIN_IMAGES = 16
# Rows of tokens on which a layer is quantised.
_MAX_ROWS = 2048
# Images on which a layer's harm to its block is measured.
_NUM_HARM_IMAGES = 4
# The search has to reach this share of the distance that the gate allows: other images will differ a little more.
_MARGIN = 0.8
# With more layers than this share in float, int8 saves too little to be worth it.
_MAX_FLOAT_SHARE = 0.5


@dataclass(frozen=True)
class Calibration:
    """The int8 layers of one backbone.

    Attributes:
        layers: how each quantised linear layer runs, by name.
        in_float: names of the linear layers that stay in float, worst first.
        measured: agreement with fp32 on images that the layers were not calibrated on.
        images: their number, and the hash of the images that the layers were calibrated on, as normalised float32.
    """

    layers: Mapping[str, Quantised]
    in_float: Sequence[str]
    measured: Agreement
    images: Mapping[str, object] | None = None

    @property
    def name(self) -> str:
        """A short hash of all numbers, which stands for them in stamps."""
        return hashlib.sha256(save(_tensors(self.layers))).hexdigest()[:16]


def calibrate(
    backbone: VisionTransformer,
    images: Tensor,
    *,
    folders: Sequence[Path],
    key: Mapping[str, object],
    run: Callable[[Mapping[str, Quantised]], Engine],
    reference: Engine,
    limit: float,
    max_integer: int,
) -> Calibration | str:
    """Return the int8 layers of a backbone, from the cache or found now, or why there are none.

    Args:
        backbone: on the CPU.
        images: (B, C, H, W) float32, normalised: real images. The last `gate.NUM_IMAGES` are compared, the others
            calibrate.
        folders: where calibrations are kept, looked through in this order. All of them have it afterwards.
        key: what they depend on: the model, processor, version of the engine.
        run: makes an engine with the given layers in int8.
        reference: the exact engine.
        limit: of the gate.
        max_integer: of the weights; see `Quantised`.
    """
    key = {**key, "limit": limit, "max_integer": max_integer}
    key["format"] = 2  # to be raised when the search or the numbers change
    places = [folder / gate.digest(key) for folder in folders]
    for place in places:
        if found := load_calibration(place, key=key):
            return _keep(places, found, key)
    if refused := gate.recall(key):
        return _too_far(refused, limit)
    if len(images) < MIN_IMAGES:
        return f"calibrating takes at least {MIN_IMAGES} images, and {len(images)} were given"
    calibrating, compared = images[: -gate.NUM_IMAGES], images[-gate.NUM_IMAGES :]
    logger.info("calibrating int8 on %d images, once for these weights", len(calibrating))
    layers, worst_first = quantise_all(backbone, calibrating, max_integer=max_integer)
    exact = [reference.encode(compared)]
    result = search(
        layers, worst_first, lambda chosen: gate.agreement([run(chosen).encode(compared)], exact), limit=limit
    )
    if isinstance(result, Agreement):
        gate.remember(key, result)
        return _too_far(result, limit)
    images_hash = hashlib.sha256(calibrating.contiguous().numpy().data).hexdigest()
    result = replace(result, images={"sha256": images_hash, "num_images": len(calibrating)})
    return _keep(places, result, key)


def quantise_all(
    backbone: VisionTransformer, images: Tensor, *, max_integer: int
) -> tuple[dict[str, Quantised], list[str]]:
    """Quantise every linear layer of the blocks on the inputs that it has in fp32.

    Args:
        backbone: on the CPU.
        images: (B, C, H, W) float32, normalised: real images.
        max_integer: of the weights; see `Quantised`.

    Returns:
        The layers by name, and their names by harm, worst first: the mean share of a token that rounding one layer
        changes at the end of its block, over the number of the layer's weights.
    """
    layers: dict[str, Quantised] = {}
    harm: dict[str, float] = {}
    with torch.inference_mode():
        x, (group,) = backbone.embed([images], [None])
        rows, num_prefix_rows = _rows_of(group, backbone.num_prefix_tokens)
        for number, block in enumerate(backbone.blocks):
            linears = list(linears_of(backbone, number))
            inputs, after = _inputs_of(block, linears, x, group)
            for layer, seen in zip(linears, inputs, strict=True):
                found = quantise(
                    layer.weight, layer.bias, seen[rows], num_prefix_rows=num_prefix_rows, max_integer=max_integer
                )
                layers[layer.name] = found
                change = _change(block, layer, found, x, group, backbone.num_prefix_tokens)
                harm[layer.name] = change / layer.weight.numel()
            x = after
    return layers, sorted(harm, key=lambda name: -harm[name])


def search(
    layers: Mapping[str, Quantised],
    worst_first: Sequence[str],
    measure: Callable[[Mapping[str, Quantised]], Agreement],
    *,
    limit: float,
) -> Calibration | Agreement:
    """Find how many of the worst layers have to stay in float; the agreement when not even half of them suffice.

    Args:
        layers: every layer, quantised.
        worst_first: their names.
        measure: runs the network with the given layers in int8 and compares it with fp32.
        limit: of the gate.
    """
    wanted = _wanted(limit)

    def tried(num_float: int) -> Agreement:
        measured = measure({name: layers[name] for name in worst_first[num_float:]})
        logger.debug("int8 with %d of %d layers in float: %s", num_float, len(worst_first), measured)
        return measured

    passing, failing = 0, -1
    measured = tried(0)
    if not measured.passes(wanted):
        passing, failing = int(_MAX_FLOAT_SHARE * len(worst_first)), 0
        measured = tried(passing)
        if not measured.passes(wanted):
            return measured
    while passing - failing > 1:
        middle = (passing + failing) // 2
        between = tried(middle)
        if between.passes(wanted):
            passing, measured = middle, between
        else:
            failing = middle
    return Calibration({name: layers[name] for name in worst_first[passing:]}, worst_first[:passing], measured)


def save_calibration(folder: Path, found: Calibration, *, key: Mapping[str, object]) -> Calibration:
    """Write a calibration as a folder, whole or not at all, and return what is there: another process may be faster.

    The card tells the conditions, the hash of the images, the layers in float and the cosines.

    Raises:
        OSError: it cannot be written.
    """
    data = save(_tensors(found.layers))
    card = {
        "kind": "foveal int8 calibration",
        "key": dict(key),
        "images": found.images,
        "in_float": list(found.in_float),
        "measured": found.measured._asdict(),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    staging = staging_of(folder)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write_atomically(staging / LAYERS, data)
    write_atomically(staging / CARD, json.dumps(card, indent=2) + "\n")
    if publish_new(staging, folder):
        return found
    return load_calibration(folder, key=key) or found


def load_calibration(folder: Path, *, key: Mapping[str, object]) -> Calibration | None:
    """Read a calibration back; None with a warning where there is a damaged one, when it has to be made."""
    if not folder.is_dir():
        return None
    try:
        card = json.loads((folder / CARD).read_text())
        data = (folder / LAYERS).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        if card["key"] != dict(key) or card["sha256"] != sha256:
            raise ValueError("its hash or its conditions are not those of its card")
        layers = _layers(load_file(folder / LAYERS))
        return Calibration(layers, card["in_float"], Agreement(**card["measured"]), card["images"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        logger.warning("%s cannot be used (%s); calibrating again", folder, error)
        return None


def _keep(places: Sequence[Path], found: Calibration, key: Mapping[str, object]) -> Calibration:
    """Write a calibration wherever it is not yet, the first place last, and return what the first place has."""
    for place in reversed(places):
        try:
            there = load_calibration(place, key=key)
            if there is None:
                shutil.rmtree(place, ignore_errors=True)  # a damaged one
                there = save_calibration(place, found, key=key)
            found = there
        except OSError as error:
            logger.warning("%s cannot be written (%s); the next run calibrates again; set FOVEAL_HOME", place, error)
    return found


def _wanted(limit: float) -> float:
    return 1 - _MARGIN * (1 - limit)


def _too_far(measured: Agreement, limit: float) -> str:
    return f"with half of the layers in float {measured}, calibrating wants {_wanted(limit):.6f}"


def _rows_of(group: Group, num_prefix: int) -> tuple[Tensor, int]:
    """Choose packed rows of a batch: all class and register tokens first, whose number is returned, then patches."""
    rows = torch.arange(group.rows)
    is_prefix = rows % group.num_tokens < num_prefix
    patches = rows[~is_prefix]
    chosen = torch.cat([rows[is_prefix], patches[:: max(1, len(patches) // _MAX_ROWS)]])
    return chosen, int(is_prefix.sum())


def _inputs_of(block: nn.Module, linears: Sequence[Linear], x: Tensor, group: Group) -> tuple[list[Tensor], Tensor]:
    """Run a block; return the inputs of its linear layers and its output."""
    inputs: list[Tensor] = []
    hooks = [layer.module.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in linears]
    try:
        after = block(x, [group])
    finally:
        for hook in hooks:
            hook.remove()
    return inputs, after


def _change(block: nn.Module, layer: Linear, found: Quantised, x: Tensor, group: Group, num_prefix: int) -> float:
    """Return the mean over tokens of |change|^2 / |token|^2 that rounding one layer makes at the end of its block.

    Class and register tokens together count as much as all patches.
    """
    few = Group(min(group.num_images, _NUM_HARM_IMAGES), group.num_tokens)
    x = x[: few.rows]
    exact = block(x, [few])

    def rounded(module: nn.Linear, args: tuple[Tensor], output: Tensor) -> Tensor:
        # The folded factor is taken out again by way of the difference, for it can be 0.
        error = found.run(args[0], layer.weight) - F.linear(args[0], layer.weight, layer.bias)
        gamma = layer.gamma
        return output + torch.where(gamma == 0, 0.0, error / gamma)

    hook = layer.module.register_forward_hook(rounded)
    try:
        changed = block(x, [few])
    finally:
        hook.remove()
    change = (changed - exact).square().sum(1) / exact.square().sum(1).clamp(min=1e-12)
    return float(mean_of_rows(change.view(few.num_images, few.num_tokens).T, num_prefix).mean())


def _tensors(layers: Mapping[str, Quantised]) -> dict[str, Tensor]:
    stored = {}
    for name, layer in layers.items():
        for field, value in asdict(layer).items():
            stored[f"{name}:{field}"] = (
                value.contiguous() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            )
    return stored


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, Quantised]:
    fields: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition(":")
        fields.setdefault(name, {})[field] = value
    return {
        name: Quantised(
            found["input_scale"],
            float(found["low"]),
            float(found["high"]),
            found["weight_scale"],
            found["bias"],
            int(found["max_integer"]),
            float(found["error"]),
            int(found["levels"]),
        )
        for name, found in fields.items()
    }
