"""A model behind LitServe, as its documentation builds a server; `benchmarks/serve.py --litserve-python` runs it.

    python benchmarks/serve_litserve.py MODEL PHOTOS PORT

The engine is foveal's, chosen on the same photographs: what differs is the server.
"""

import base64
import sys

import litserve
import numpy as np
import torch

import foveal
from foveal.images.decode import decode
from foveal.images.imageset import ImageSet


class Embedding(litserve.LitAPI):
    """Decodes base64, encodes batches, answers with lists."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.model = foveal.load(sys.argv[1]).settle(ImageSet.open(sys.argv[2]))
        self.preprocess = self.model.preprocessing()

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        """Return the prepared image (C, H, W)."""
        pixels: np.ndarray = decode(base64.b64decode(request["input"]))
        return torch.from_numpy(self.preprocess(pixels))

    def predict(self, batch: torch.Tensor) -> torch.Tensor:
        """Return class tokens (B, D) of images (B, C, H, W)."""
        return self.model.engine.encode(batch).cls

    def encode_response(self, output: torch.Tensor) -> dict[str, list[float]]:
        """Return what is sent."""
        return {"embedding": output.tolist()}


if __name__ == "__main__":
    api = Embedding(max_batch_size=8, batch_timeout=0.01)
    litserve.LitServer(api, accelerator="cpu").run(port=int(sys.argv[3]), generate_client_file=False)
