"""The table of known public checkpoints: where they are, how large, under which licence, and their sha256.

Sources: names and urls from the README of facebookresearch/dinov2, facebookresearch/dinov3 and
DepthAnything/Depth-Anything-V2; licences from their LICENSE sections. Parameters are counted from the sizes.

Meta publishes no hashes. Those of the DINOv2 backbones are the ones that independent projects recorded alike
(among them finegrain-ai/refiners); where fewer than two did, there is none here and the first download is pinned.
Depth Anything's are the content hashes that Hugging Face publishes for its files.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from foveal.backbone import parameters
from foveal.backbone.licence import NAMED, Licence
from foveal.backbone.variants import BackboneConfig, backbone_config
from foveal.errors import DownloadError, nearest

Kind = Literal["backbone", "classifier head", "depth head", "segmentation head", "depth model", "segmentation model"]
HashSource = Literal["publisher", "independent"]

_DINOV2 = "https://github.com/facebookresearch/dinov2"
_META_FORMS = "https://ai.meta.com/resources/models-and-libraries"
APACHE = NAMED["Apache-2.0"].model_copy(update={"url": f"{_DINOV2}/blob/main/LICENSE"})
XRAY = Licence(
    name="FAIR Noncommercial Research License (XRay-DINO)",
    terms="non-commercial",
    url=f"{_DINOV2}/blob/main/LICENSE_XRAY_DINO_MODEL",
)
CELL = Licence(
    name="FAIR Noncommercial Research License (Cell-DINO)",
    terms="non-commercial",
    url=f"{_DINOV2}/blob/main/LICENSE_CELL_DINO_MODELS",
)
DINOV3 = Licence(name="DINOv3 License", terms="custom", url=f"{_META_FORMS}/dinov3-license/")


@dataclass(frozen=True)
class Checkpoint:
    """One row of the table.

    Attributes:
        name: what `foveal.load` and `foveal download` take.
        kind: what the file holds.
        parameters: counted from the sizes; the publisher's rounded number where `rounded`; None where unknown.
        patch_size: pixels; None for convolutional networks.
        licence: as its owner states it.
        url: of the file; None where its owner gives it only to those who accept the terms at `source`.
        source: the page to read about it, or to ask for it.
        size_bytes: of the file; None where unknown.
        sha256: of the file; None where none is published or recorded.
        hash_source: who says so: "publisher", or "independent" projects that recorded the same.
        backbone: for a backbone, its configuration; for a head, that of the backbone it belongs on.
        belongs_to: for a head, the name of its backbone.
        rounded: `parameters` is not exact.
    """

    name: str
    kind: Kind
    parameters: int | None
    patch_size: int | None
    licence: Licence
    url: str | None
    source: str
    size_bytes: int | None = None
    sha256: str | None = None
    hash_source: HashSource | None = None
    backbone: BackboneConfig | None = None
    belongs_to: str | None = None
    rounded: bool = False

    @property
    def file_name(self) -> str | None:
        """The file's name at its source, in the cache and on a mirror; None where it cannot be downloaded."""
        return self.url.rsplit("/", 1)[1] if self.url else None


# name: (bytes, sha256).
_KNOWN_BACKBONES = {
    "dinov2_vits14": (88_283_115, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    "dinov2_vits14_reg": (88_291_785, "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb"),
    "dinov2_vitb14": (346_378_731, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    "dinov2_vitb14_reg": (346_393_545, "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71"),
    "dinov2_vitl14": (1_217_586_395, "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
    "dinov2_vitl14_reg": (1_217_607_321, "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51"),
    "dinov2_vitg14": (4_546_108_579, "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3"),
    "dinov2_vitg14_reg": (4_546_140_349, "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283"),
}
# letter: (size, features of its DPT, channels of its DPT, licence, bytes, sha256).
_DEPTH_ANYTHING: dict[str, tuple[str, int, list[int], Licence, int, str]] = {
    "s": (
        "Small",
        64,
        [48, 96, 192, 384],
        NAMED["Apache-2.0"],
        99_218_434,
        "715fade13be8f229f8a70cc02066f656f2423a59effd0579197bbf57860e1378",
    ),
    "b": (
        "Base",
        128,
        [96, 192, 384, 768],
        NAMED["CC-BY-NC-4.0"],
        389_961_218,
        "0d2b7002e62d39d655571c371333340bd88f67ab95050c03591555aa05645328",
    ),
    "l": (
        "Large",
        256,
        [256, 512, 1024, 1024],
        NAMED["CC-BY-NC-4.0"],
        1_341_395_338,
        "a7ea19fa0ed99244e67b624c72b8580b7e9553043245905be58796a608eb9345",
    ),
}
# name: (variant, changes); sizes from the hub files of facebookresearch/dinov2.
_ON_REQUEST = {
    "xray_dino_vitl16": (XRAY, "raydino-downloads", "vitl", {"patch_size": 16, "image_size": 512}),
    "cell_dino_hpa_vitl14": (CELL, "cell-dino-downloads", "vitl", {"channels": 4}),
    "cell_dino_hpa_vitl16": (CELL, "cell-dino-downloads", "vitl", {"patch_size": 16, "image_size": 224, "channels": 4}),
    "cell_dino_cp_vits8": (CELL, "cell-dino-downloads", "vits", {"patch_size": 8, "image_size": 128, "channels": 5}),
}
# name: (millions of parameters in the README of facebookresearch/dinov3, patch size).
_DINOV3_MODELS = {
    "dinov3_vits16": (21, 16),
    "dinov3_vits16plus": (29, 16),
    "dinov3_vitb16": (86, 16),
    "dinov3_vitl16": (300, 16),
    "dinov3_vith16plus": (840, 16),
    "dinov3_vit7b16": (6716, 16),
    "dinov3_convnext_tiny": (29, None),
    "dinov3_convnext_small": (50, None),
    "dinov3_convnext_base": (89, None),
    "dinov3_convnext_large": (198, None),
    "dinov3_vitl16_sat493m": (300, 16),
    "dinov3_vit7b16_sat493m": (6716, 16),
}


def _dinov2(letter: str) -> list[Checkpoint]:
    rows = []
    base = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{letter}14"
    for registers, suffix, stem in ((0, "", ""), (4, "_reg", "_reg4")):
        name, file = f"dinov2_vit{letter}14{suffix}", f"{base}/dinov2_vit{letter}14{stem}"
        config = backbone_config(f"vit{letter}", num_registers=registers)
        count = parameters.backbone_parameters(config)
        size_bytes, sha256 = _KNOWN_BACKBONES[name]
        rows.append(
            Checkpoint(
                name=name,
                kind="backbone",
                parameters=count,
                patch_size=14,
                licence=APACHE,
                url=f"{file}_pretrain.pth",
                source=_DINOV2,
                size_bytes=size_bytes,
                sha256=sha256,
                hash_source="independent",
                backbone=config,
            )
        )
        heads = _classifier_heads(config.width) + ([] if registers else _dense_heads(config.width))
        rows += [
            Checkpoint(
                name=f"{name}_{part}",
                kind=kind,
                parameters=number,
                patch_size=14,
                licence=APACHE,
                url=f"{file}_{part}.pth",
                source=_DINOV2,
                backbone=config,
                belongs_to=name,
            )
            for part, kind, number in heads
        ]
    return rows


def _classifier_heads(width: int) -> list[tuple[str, Kind, int]]:
    return [
        ("linear_head", "classifier head", parameters.classifier_parameters(width, num_layers=1)),
        ("linear4_head", "classifier head", parameters.classifier_parameters(width, num_layers=4)),
    ]


def _dense_heads(width: int) -> list[tuple[str, Kind, int]]:
    heads: list[tuple[str, Kind, int]] = []
    for data in ("nyu", "kitti"):
        heads += [
            (f"{data}_linear_head", "depth head", parameters.linear_depth_parameters(width, num_layers=1)),
            (f"{data}_linear4_head", "depth head", parameters.linear_depth_parameters(width, num_layers=4)),
            (f"{data}_dpt_head", "depth head", parameters.dpt_parameters(width)),
        ]
    for data, classes in (("ade20k", 150), ("voc2012", 21)):
        for name, layers in (("linear", 1), ("ms", 4)):
            count = parameters.linear_segmentation_parameters(width, num_layers=layers, num_classes=classes)
            heads.append((f"{data}_{name}_head", "segmentation head", count))
    return heads


def _mask2former() -> Checkpoint:
    return Checkpoint(
        name="dinov2_vitg14_ade20k_m2f",
        kind="segmentation model",
        parameters=None,
        patch_size=14,
        licence=APACHE,
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/dinov2_vitg14_ade20k_m2f.pth",
        source=_DINOV2,
    )


def _depth_anything(letter: str) -> Checkpoint:
    size, features, channels, licence, size_bytes, sha256 = _DEPTH_ANYTHING[letter]
    config = backbone_config(f"vit{letter}")
    head = parameters.depth_anything_parameters(config.width, features=features, channels=channels)
    repository = f"https://huggingface.co/depth-anything/Depth-Anything-V2-{size}"
    return Checkpoint(
        name=f"depth_anything_v2_vit{letter}",
        kind="depth model",
        parameters=parameters.backbone_parameters(config) + head,
        patch_size=14,
        licence=licence,
        url=f"{repository}/resolve/main/depth_anything_v2_vit{letter}.pth",
        source="https://github.com/DepthAnything/Depth-Anything-V2",
        size_bytes=size_bytes,
        sha256=sha256,
        hash_source="publisher",
        backbone=config,
    )


def _on_request(name: str) -> Checkpoint:
    licence, form, variant, changes = _ON_REQUEST[name]
    config = backbone_config(variant, **changes)
    return Checkpoint(
        name=name,
        kind="backbone",
        parameters=parameters.backbone_parameters(config),
        patch_size=config.patch_size,
        licence=licence,
        url=None,
        source=f"{_META_FORMS}/{form}/",
        backbone=config,
    )


def _dinov3(name: str) -> Checkpoint:
    millions, patch_size = _DINOV3_MODELS[name]
    return Checkpoint(
        name=name,
        kind="backbone",
        parameters=millions * 1_000_000,
        patch_size=patch_size,
        licence=DINOV3,
        url=None,
        source=f"{_META_FORMS}/dinov3-downloads/",
        rounded=True,
    )


CHECKPOINTS: dict[str, Checkpoint] = {
    row.name: row
    for row in (
        *(row for letter in "sblg" for row in _dinov2(letter)),
        _mask2former(),
        *(_depth_anything(letter) for letter in _DEPTH_ANYTHING),
        *(_on_request(name) for name in _ON_REQUEST),
        *(_dinov3(name) for name in _DINOV3_MODELS),
    )
}


def checkpoint(name: str) -> Checkpoint:
    """Return the row of that name; DownloadError names the nearest when there is none.

    Example:
        >>> checkpoint("dinov2_vits14").parameters
        22056576
    """
    if name not in CHECKPOINTS:
        raise DownloadError(
            f"no known checkpoint is called '{name}'{nearest(name, CHECKPOINTS)}; `foveal models` lists them"
        )
    return CHECKPOINTS[name]


def checkpoint_of(sha256: Iterable[str]) -> Checkpoint | None:
    """Return the row whose file has one of these hashes, if any."""
    hashes = set(sha256)
    return next((row for row in CHECKPOINTS.values() if row.sha256 in hashes), None)
