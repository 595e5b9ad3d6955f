"""What tells one network from another, whatever file it came in: a hash of its configuration and all its weights."""

import hashlib

import torch
from torch import nn

from foveal.backbone.variants import BackboneConfig


def identity_of(network: nn.Module, config: BackboneConfig, *, architecture: str = "") -> str:
    """Return the sha256 of a network's weights, with their names, and of its configuration.

    It takes 0.5 to 2 s for each GB of weights.

    Args:
        network: its weights, on any device.
        config: sizes that the weights alone do not tell, such as the number of heads.
        architecture: what else decides the features and is in neither, for networks of other libraries.
    """
    found = hashlib.sha256(f"{architecture}\n{config.model_dump_json()}\n".encode())
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
