"""Asks a server with Triton's public client and keeps the answers: ADDRESS FOLDER ANSWERS MOST.

FOLDER holds pictures and repositories; MOST pictures are allowed in a request.

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
    address, folder, most = sys.argv[1], Path(sys.argv[2]), int(sys.argv[4])
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
                return str(error.message()) if error.status() in ("400", "413", "422") else f"{error.status()}"
            return "answered"

        together = ask(pictures)
        for number, one in enumerate(pool.map(ask, [[picture] for picture in pictures * 10])):
            for name, values in one.items():
                found, wanted = values[0], together[name][number % len(pictures)]
                assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max(), (name, number)
        too_many = pictures * (most // len(pictures) + 1)
        refusals = [refusal(bad) for bad in ([pictures[0], b"no picture"], [pictures[0][:200]], too_many)]
        assert all(len(said) > len("answered") for said in refusals), refusals
    np.savez(folder / sys.argv[3], **together, refusals=np.array(refusals))


if __name__ == "__main__":
    main()
