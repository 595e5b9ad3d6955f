"""Asks a Triton server with the public client and keeps the answers: ADDRESS FOLDER, of pictures and repositories.

Runs in the environment of that client.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.http as client
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException


def main() -> None:
    address, folder = sys.argv[1], Path(sys.argv[2])
    for path in folder.glob("*/*/config.pbtxt"):
        assert text_format.Parse(path.read_text(), ModelConfig()).name == path.parent.name
    pictures = [path.read_bytes() for path in sorted(folder.glob("pictures/*"))]
    with ThreadPoolExecutor(8) as pool:

        def ask(rows: list[bytes]) -> dict[str, np.ndarray]:
            encoded = client.InferInput("encoded", [len(rows)], "BYTES")
            encoded.set_data_from_numpy(np.array(rows, dtype=object))
            with client.InferenceServerClient(address) as server:  # one belongs to one thread
                answer = server.infer("ensemble", [encoded])
            return {one["name"]: answer.as_numpy(one["name"]) for one in answer.get_response()["outputs"]}

        def refusal(rows: list[bytes]) -> str:
            try:
                ask(rows)
            except InferenceServerException as error:
                return str(error) if error.status() == "400" else f"{error.status()}"
            return "answered"

        together = ask(pictures)
        for number, one in enumerate(pool.map(ask, [[picture] for picture in pictures * 10])):
            for name, values in one.items():
                found, wanted = values[0], together[name][number % len(pictures)]
                assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max(), (name, number)
        for bad in ([pictures[0], b"no picture"], [pictures[0][:200]], pictures * 3):
            assert "encoded" in refusal(bad)
    np.savez(folder / "answers.npz", **together)


if __name__ == "__main__":
    main()
