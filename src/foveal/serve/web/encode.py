"""Pictures as pages get them."""

import io
from typing import Literal

from PIL import Image


def encoded(picture: Image.Image, side: int, kind: Literal["JPEG", "PNG"] = "JPEG") -> bytes:
    """Return a picture as a file, smaller where its longer side has more than `side` pixels; it is changed."""
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()
