"""Asks a server by Triton's public client: ADDRESS FOLDER, with images.npy and picture.png; writes answers.npz."""

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

client, folder = http.InferenceServerClient(sys.argv[1]), Path(sys.argv[2])
images = np.load(folder / "images.npy")
answers: dict[str, np.ndarray] = {}
assert client.is_server_live()
assert client.is_server_ready()
assert client.is_model_ready("tiny")
assert not client.is_model_ready("other")
assert "animals" in [output["name"] for output in client.get_model_metadata("tiny")["outputs"]]
assert client.get_model_config("ensemble")["input"][0]["name"] == "encoded"
for is_binary in (True, False):
    given = http.InferInput("images", list(images.shape), "FP32")
    given.set_data_from_numpy(images, binary_data=is_binary)
    wanted = [http.InferRequestedOutput(name, binary_data=is_binary) for name in ("cls", "patches", "animals")]
    answer = client.infer("backbone", [given], outputs=wanted, request_id="one")
    assert answer.get_response()["id"] == "one"
    for name in ("cls", "patches", "animals"):
        answers[f"{name} {is_binary}"] = answer.as_numpy(name)
best = client.infer("tiny", [given], outputs=[http.InferRequestedOutput("animals", class_count=2)])
answers["best"] = best.as_numpy("animals").astype(str)
encoded = http.InferInput("encoded", [1], "BYTES")
encoded.set_data_from_numpy(np.array([(folder / "picture.png").read_bytes()], dtype=object))
answers["picture"] = client.infer("ensemble", [encoded], model_version="1").as_numpy("cls")
for model, inputs in (("other", [given]), ("tiny", [given, given]), ("tiny", [encoded, given])):
    try:
        client.infer(model, inputs)
    except InferenceServerException:
        pass
    else:
        raise AssertionError(f"{model} with {len(inputs)} inputs was answered")
np.savez(folder / "answers.npz", **answers)
