"""Figures that the authors published for their own models, to stand beside ours where model and data are the same.

Names of models are those of `foveal models`; "_reg" marks four registers. Source: arXiv 2304.07193 (DINOv2), and the
public evaluation table of its repository for models with registers. Figures of other protocols or of other image sizes
are left out.
"""

_SIZES = ("s", "b", "l", "g")
_PLAIN = tuple(f"dinov2_vit{size}14" for size in _SIZES)
_REGISTERS = tuple(f"dinov2_vit{size}14_reg" for size in _SIZES)

IMAGENET = "ImageNet-1k"
IMAGENET_C = "ImageNet-C"

# (protocol, data, metric): a figure for each of S, B, L and g.
_WITHOUT_REGISTERS = {
    ("knn", IMAGENET, "knn-20 top-1"): (79.0, 82.1, 83.5, 83.5),
    ("linear", IMAGENET, "top-1"): (81.1, 84.5, 86.3, 86.5),
    ("linear", "ImageNet-V2", "top-1"): (70.9, 75.1, 78.0, 78.4),
    ("linear", "ImageNet-ReaL", "top-1"): (86.6, 88.3, 89.5, 89.6),
    ("linear", "ImageNet-A", "top-1"): (33.5, 55.1, 71.3, 75.9),
    ("linear", "ImageNet-R", "top-1"): (53.7, 63.3, 74.4, 78.8),
    ("linear", "ImageNet-Sketch", "top-1"): (41.2, 50.6, 59.3, 62.5),
    ("linear", "iNaturalist 2018", "top-1"): (69.0, 76.4, 80.4, 81.6),
    ("linear", "iNaturalist 2021", "top-1"): (74.2, 81.1, 85.1, 85.7),
    ("linear", "Places205", "top-1"): (62.9, 66.2, 67.3, 67.5),
    ("robustness", IMAGENET_C, "mCE"): (54.4, 42.7, 31.5, 28.2),
    ("retrieval", "revisited Oxford", "mAP medium"): (68.8, 72.9, 75.1, 73.6),
    ("retrieval", "revisited Oxford", "mAP hard"): (43.2, 49.5, 54.0, 52.3),
    ("retrieval", "revisited Paris", "mAP medium"): (84.6, 90.3, 92.7, 92.1),
    ("retrieval", "revisited Paris", "mAP hard"): (68.5, 78.6, 83.5, 82.6),
    ("retrieval", "AmsterTime", "mAP"): (43.5, 45.6, 50.0, 46.7),
    ("segment", "ADE20K", "linear mIoU"): (44.3, 47.3, 47.7, 49.0),
    ("segment", "ADE20K", "ms mIoU"): (47.2, 51.3, 53.1, 53.0),
    ("segment", "Cityscapes", "linear mIoU"): (66.6, 69.4, 70.3, 71.3),
    ("segment", "Cityscapes", "ms mIoU"): (77.1, 80.0, 80.9, 81.0),
    ("segment", "Pascal VOC 2012", "linear mIoU"): (81.1, 82.5, 82.1, 83.0),
    ("segment", "Pascal VOC 2012", "ms mIoU"): (82.6, 84.9, 86.0, 86.2),
    ("depth", "NYUd", "lin.1 RMSE"): (0.449, 0.399, 0.384, 0.344),
    ("depth", "NYUd", "lin.4 RMSE"): (0.417, 0.362, 0.333, 0.298),
    ("depth", "NYUd", "DPT RMSE"): (0.356, 0.317, 0.293, 0.279),
    ("depth", "KITTI", "lin.1 RMSE"): (3.10, 2.90, 2.78, 2.62),
    ("depth", "KITTI", "lin.4 RMSE"): (2.86, 2.59, 2.50, 2.35),
    ("depth", "KITTI", "DPT RMSE"): (2.34, 2.23, 2.14, 2.11),
    ("video-classify", "Kinetics-400", "top-1"): (67.8, 73.2, 76.3, 78.4),
    ("video-classify", "UCF101", "top-1"): (87.0, 89.1, 90.5, 91.2),
    ("video-classify", "Something-Something v2", "top-1"): (33.1, 34.4, 35.6, 38.3),
}
_WITH_REGISTERS = {
    ("knn", IMAGENET, "knn-20 top-1"): (79.1, 82.0, 83.8, 83.7),
    ("linear", IMAGENET, "top-1"): (80.9, 84.6, 86.7, 87.1),
    ("linear", "ImageNet-V2", "top-1"): (71.0, 75.6, 78.5, 78.8),
    ("retrieval", "revisited Oxford", "mAP hard"): (39.5, 51.0, 55.7, 58.2),
    ("linear", "iNaturalist 2018", "top-1"): (67.6, 73.8, 80.9, 81.5),
}


def published_value(*, model: str, data: str, protocol: str, metric: str) -> float | None:
    """Return the published figure for a model, data, protocol and metric, in the unit of ours; None without one.

    Example:
        >>> published_value(model="dinov2_vits14", data="ImageNet-1k", protocol="knn", metric="knn-20 top-1")
        79.0
    """
    for names, figures in ((_PLAIN, _WITHOUT_REGISTERS), (_REGISTERS, _WITH_REGISTERS)):
        if model in names and (found := figures.get((protocol, data, metric))):
            return found[names.index(model)]
    return None
