"""torchvision of a CUDA build does not import beside torch for CPUs: the operators that it misses are declared here."""

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _LIBRARY.define(f"{_name}{_BOXES}")
