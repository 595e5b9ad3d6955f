"""The one table of network sizes, and the configuration that a network is built from."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from foveal.errors import RecipeError, nearest

# name: (width, depth, num_heads, ffn). arXiv 2304.07193, table 17 with its misprint corrected (ViT-B has 12 blocks).
# The sizes below "vits" are ours, for tests and for small data.
VARIANTS: dict[str, tuple[int, int, int, Literal["mlp", "swiglu"]]] = {
    "vit_nano": (48, 3, 3, "mlp"),
    "vit_micro": (128, 6, 4, "mlp"),
    "vit_mini": (192, 6, 3, "mlp"),
    "vit_tiny": (192, 12, 3, "mlp"),
    "vits": (384, 12, 6, "mlp"),
    "vitb": (768, 12, 12, "mlp"),
    "vitl": (1024, 24, 16, "mlp"),
    "vitg": (1536, 40, 24, "swiglu"),
}


class BackboneConfig(BaseModel):
    """Everything that decides the shape of a backbone; stored in the card of its model folder.

    `variant` fills in width, depth, num_heads and ffn; each of them can be given instead, or to change the variant.
    `image_size` is the size in pixels for which the positional embedding is stored (518 for the public weights).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str = "custom"
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    ffn: Literal["mlp", "swiglu"] = "mlp"
    patch_size: int = Field(default=14, gt=0)
    image_size: int = Field(default=518, gt=0)
    channels: int = Field(default=3, gt=0)
    num_registers: int = Field(default=0, ge=0)
    layerscale_init: float = Field(default=1e-5, gt=0)
    drop_path_rate: float = Field(default=0.0, ge=0.0, lt=1.0)
    # How the positional embedding is resized: "offset" as the public weights without registers were trained,
    # "antialias" as those with registers were. None chooses by num_registers, as upstream does.
    pos_embed_resize: Literal["offset", "antialias"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_from_variant(cls, values: object) -> object:
        if not isinstance(values, dict) or values.get("variant", "custom") == "custom":
            return values
        name = values["variant"]
        if ":" in str(name):  # a network of another library, with its sizes beside
            return values
        if name not in VARIANTS:
            raise ValueError(
                f"variant '{name}' is not known{nearest(str(name), VARIANTS)}; known: {', '.join(VARIANTS)}"
            )
        width, depth, num_heads, ffn = VARIANTS[name]
        return {"width": width, "depth": depth, "num_heads": num_heads, "ffn": ffn} | values

    @model_validator(mode="after")
    def _check_shapes(self) -> "BackboneConfig":
        if self.image_size % self.patch_size:
            raise ValueError(multiple_of_patch("image_size", self.image_size, self.patch_size))
        if self.width % self.num_heads:
            raise ValueError(f"width={self.width} is not a multiple of num_heads={self.num_heads}")
        return self

    @property
    def grid_size(self) -> int:
        """Patches along one side of the stored positional embedding."""
        return self.image_size // self.patch_size

    @property
    def ffn_hidden(self) -> int:
        """Hidden width of the feed-forward: 4D, or for SwiGLU 8D/3 rounded up to a multiple of 8."""
        if self.ffn == "mlp":
            return 4 * self.width
        return (int(4 * self.width * 2 / 3) + 7) // 8 * 8

    @property
    def resize_mode(self) -> Literal["offset", "antialias"]:
        """How the positional embedding is resized, with the default resolved."""
        return self.pos_embed_resize or ("antialias" if self.num_registers else "offset")


def multiple_of_patch(name: str, size: int, patch_size: int) -> str:
    """Say that `size` does not divide into patches, and which sizes next to it do."""
    below, above = size // patch_size * patch_size, (size // patch_size + 1) * patch_size
    choice = f"{below} or {above}" if below else f"{above}"
    return f"{name}={size} is not a multiple of patch_size={patch_size}; use {choice}"


def backbone_config(variant: str, **changes: object) -> BackboneConfig:
    """Build the configuration of a named variant with some fields changed.

    Raises:
        RecipeError: an unknown variant or field, or sizes that do not fit; the message names them.

    Example:
        >>> backbone_config("vits", image_size=224).grid_size
        16
    """
    try:
        return BackboneConfig.model_validate({"variant": variant, **changes})
    except ValueError as error:
        raise RecipeError(f"backbone: {error}") from error
