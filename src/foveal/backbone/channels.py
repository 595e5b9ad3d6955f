"""Give a patch embedding another number of input channels."""

from collections.abc import Mapping

from torch import Tensor

from foveal.errors import WeightsError

_KERNEL = "patch_embed.proj.weight"


def inflate_patch_embedding(state: Mapping[str, Tensor], *, channels: int) -> dict[str, Tensor]:
    """Return the weights of a backbone with its patch embedding made for `channels` inputs.

    Every new kernel is the sum of the old ones over the new number of channels:

        W'[d, c] = (1 / channels) sum over k of W[d, k]

    so that a patch whose (normalised) channels are all alike is embedded as before, from any number of channels to any
    other: 3 to 1 is the sum, 3 to C the mean repeated and scaled by 3 / C. What told colours apart is lost; so give
    the new channels' own mean and std in the card, and train on. The other tensors are passed on as they are.

    Args:
        state: as `VisionTransformer.state_dict()` names it; not changed.
        channels: inputs of the new network; with as many as there are, the weights are returned as they are.

    Raises:
        WeightsError: the weights hold no patch embedding, or channels is below 1.

    Example:
        >>> import torch
        >>> old = {"patch_embed.proj.weight": torch.arange(3.0).reshape(1, 3, 1, 1)}
        >>> inflate_patch_embedding(old, channels=2)["patch_embed.proj.weight"].flatten().tolist()
        [1.5, 1.5]
    """
    if channels < 1:
        raise WeightsError(f"channels={channels}; a patch embedding takes at least 1")
    if _KERNEL not in state:
        raise WeightsError(f"the weights hold no {_KERNEL}; give the state of a backbone in foveal's names")
    kernel = state[_KERNEL]
    if kernel.shape[1] == channels:
        return dict(state)
    summed = kernel.sum(dim=1, keepdim=True) / channels
    return {**state, _KERNEL: summed.expand(-1, channels, -1, -1).contiguous()}
