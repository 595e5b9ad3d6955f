"""How many parameters a network or head has, from its sizes alone, without building it.

Heads: arXiv 2304.07193 and its public heads; Depth Anything V2: arXiv 2406.09414. Buffers are not counted.
"""

from collections.abc import Sequence

from foveal.backbone.variants import BackboneConfig


def backbone_parameters(config: BackboneConfig) -> int:
    """Count a backbone's parameters, the mask token and the stored positional embedding included."""
    width, hidden = config.width, config.ffn_hidden
    gates = 2 if config.ffn == "swiglu" else 1
    ffn = _linear(width, gates * hidden) + _linear(hidden, width)
    block = _linear(width, 3 * width) + _linear(width, width) + ffn + 2 * _norm(width) + 2 * width
    patch_embed = _linear(config.channels * config.patch_size**2, width)
    tokens = 1 + config.num_registers + 1 + (1 + config.grid_size**2)  # class, registers, mask, positions
    return patch_embed + tokens * width + config.depth * block + _norm(width)


def classifier_parameters(width: int, *, num_layers: int, num_classes: int = 1000) -> int:
    """Count a linear classifier of the class tokens of `num_layers` layers and the mean patch of the last."""
    return _linear((num_layers + 1) * width, num_classes)


def linear_depth_parameters(width: int, *, num_layers: int, num_bins: int = 256) -> int:
    """Count a linear depth head: patches beside the class token of each layer, one logit a bin."""
    return _linear(2 * width * num_layers, num_bins)


def linear_segmentation_parameters(width: int, *, num_layers: int, num_classes: int) -> int:
    """Count a linear segmentation head: batch norm over the layers' patches, then one logit a class."""
    return _norm(num_layers * width) + _linear(num_layers * width, num_classes)


def dpt_parameters(width: int, *, features: int = 256) -> int:
    """Count DINOv2's DPT depth head on four layers, with class-token readout."""
    channels = [width // 8, width // 4, width // 2, width]
    readout = 4 * _linear(2 * width, width)
    unit = 2 * 9 * features**2  # two 3 x 3 convolutions without bias; the deepest block has one unit, the others two
    fusion = 4 * _linear(features, features) + 7 * unit
    project = 9 * features**2 + features
    half = features // 2
    output = (9 * features * half + half) + (9 * half * 32 + 32) + _linear(32, 1)
    return readout + _reassemble(width, channels, features) + fusion + project + output


def depth_anything_parameters(width: int, *, features: int, channels: Sequence[int]) -> int:
    """Count the depth head of Depth Anything V2: DPT without readout, with biases in its residual units."""
    unit = 2 * (9 * features**2 + features)
    fusion = 4 * (_linear(features, features) + 2 * unit)
    half = features // 2
    output = (9 * features * half + half) + (9 * half * 32 + 32) + _linear(32, 1)
    return _reassemble(width, channels, features) + fusion + output


def _reassemble(width: int, channels: Sequence[int], features: int) -> int:
    """Count the four maps: 1 x 1 projection, resizing by 4, 2, 1 and 1/2, and a 3 x 3 to `features` without bias."""
    first, second, _, last = channels
    resize = (16 * first**2 + first) + (4 * second**2 + second) + (9 * last**2 + last)
    return sum(_linear(width, each) + 9 * each * features for each in channels) + resize


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def _norm(width: int) -> int:
    return 2 * width
