"""SSCD, a network that describes pictures so that copies are found: a ResNet-50, GeM pooling and a linear head.

Source: Pizzi et al. 2022, "A Self-Supervised Descriptor for Image Copy Detection", arXiv 2202.10261, section 4; the
trunk is He et al. 2015, arXiv 1512.03385, table 1, with the stride of a block in its 3 x 3 convolution. The names of
the weights are those of torchvision's ResNet-50, as in the published files called NAME.torchvision.pt.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.backbone.licence import UNKNOWN
from foveal.engine.tower import RANDOM, Tower, fill, tower_config
from foveal.errors import FovealError

_BLOCKS = (3, 4, 6, 3)  # of ResNet-50, in its four stages
_MAP_WIDTH, _STRIDE = 2048, 32  # of the last map
_DESCRIPTOR_WIDTH = 512
_GEM_POWER = 3.0
_SIZE = 288  # pixels of the shorter side for which the weights were published
_HINT = "Of SSCD's published files, NAME.torchvision.pt is a state dict of this network"


def sscd_tower(source: str, name: str, weights: str, seed: int) -> Tower:
    """Return the tower of a file of weights; see `foveal.engine.foreign.open_tower`."""
    if not weights:
        raise FovealError(f"{source} names no file; give sscd:FILE, or sscd:#random to try the architecture")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = SSCD()
    if weights != RANDOM:
        try:
            fill(source, module, weights)
        except FovealError as error:
            raise FovealError(f"{error}. {_HINT}") from error

    def run(images: Tensor, layers: list[int], norm: bool) -> list[tuple[Tensor | None, Tensor]]:
        descriptors, places = module(images)
        return [(descriptors[:, None], places)]

    return Tower(
        name=source,
        library="torch",
        module=module,
        run=run,
        config=tower_config(source, _DESCRIPTOR_WIDTH, 1, 1, _STRIDE, _SIZE, 1),
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
        crop_size=_SIZE,
        resize_size=_SIZE,
        is_fixed=False,
        licence=UNKNOWN,
    )


class SSCD(nn.Module):
    """The network. Its convolutions begin as He et al. 2015, arXiv 1502.01852, its head as Glorot and Bengio 2010."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, _BLOCKS[0], stride=1)
        self.layer2 = _stage(256, 128, _BLOCKS[1], stride=2)
        self.layer3 = _stage(512, 256, _BLOCKS[2], stride=2)
        self.layer4 = _stage(1024, 512, _BLOCKS[3], stride=2)
        self.fc = nn.Linear(_MAP_WIDTH, _DESCRIPTOR_WIDTH)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the last map (B, 2048, H / 32, W / 32) of images (B, 3, H, W), above or equal to 0."""
        found = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(found))))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (descriptors (B, 512), places (B, P, 512)), each vector of length 1.

        A place is described as a picture would be that looks like it everywhere: by the head without the pooling.
        """
        found = self.feature_map(images)
        pooled = gem(found.float(), power=_GEM_POWER)
        places = found.flatten(2).transpose(1, 2)
        return F.normalize(self.fc(pooled).float(), dim=-1), F.normalize(self.fc(places).float(), dim=-1)


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut; the last has four times the width."""

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or width_in != 4 * width:
            shortcut = nn.Conv2d(width_in, 4 * width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


def _stage(width_in: int, width: int, num_blocks: int, *, stride: int) -> nn.Sequential:
    first = _Bottleneck(width_in, width, stride=stride)
    return nn.Sequential(first, *(_Bottleneck(4 * width, width, stride=1) for _ in range(num_blocks - 1)))


def gem(features: Tensor, *, power: float, floor: float = 1e-6) -> Tensor:
    """Return the generalised mean over the places of a map: (mean of x^power)^(1 / power), x at least `floor`.

    Args:
        features: (B, D, H, W), above or equal to 0.
        power: 1 is the mean; the maximum is its limit.
        floor: keeps the root's slope finite.

    Returns:
        (B, D).

    Source: Radenovic et al. 2018, arXiv 1711.02512, equation 3.
    """
    return features.clamp(min=floor).pow(power).mean(dim=(-2, -1)).pow(1 / power)
