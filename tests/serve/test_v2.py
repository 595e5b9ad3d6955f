"""The Open Inference Protocol: answers are the model's own, in JSON and as bytes, and what is wrong is said."""

import base64
import json
import struct
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from serving import encoded, pixels, save_heads, served, tiny_model, write_model

from foveal.serve.loaded import Loaded, Source, open_source
from foveal.serve.one_run import run_once, share_blocks, shares
from foveal.tasks.classify import ClassPredictor
from foveal.tasks.head import load_head

pytestmark = pytest.mark.anyio
FILES = [encoded(pixels(number, *size)) for number, size in enumerate([(33, 51), (40, 29)])]
ARRAY = np.random.default_rng(1).standard_normal((2, 3, 14, 21), dtype=np.float32)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("v2")
    classes, masks, depth = save_heads(folder)
    model = write_model(folder / "model", tiny_model(0))
    return open_source(Source(str(model), heads=(f"animals={classes}", f"ground={masks}", f"far={depth}")))


@pytest.fixture
async def client(loaded: Loaded) -> AsyncIterator[httpx.AsyncClient]:
    async with served(loaded) as (found, _):
        yield found


def binary(array: np.ndarray | list[bytes], **more: Any) -> tuple[bytes, dict[str, str]]:
    """A request with its tensor as bytes, as the protocol says, and its headers."""
    if isinstance(array, list):
        block = b"".join(struct.pack("<I", len(one)) + one for one in array)
        tensor = {"name": "encoded", "datatype": "BYTES", "shape": [len(array)]}
    else:
        block = array.astype("<f4").tobytes()
        tensor = {"name": "images", "datatype": "FP32", "shape": list(array.shape)}
    text = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(block)}}], **more}).encode()
    return text + block, {"Inference-Header-Content-Length": str(len(text))}


def tensors(answer: httpx.Response) -> dict[str, np.ndarray]:
    """The tensors of an answer."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    text, block = answer.content[:length], answer.content[length:]
    found = {}
    for one in json.loads(text)["outputs"]:
        size = one.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.array(one["data"])
        elif one["datatype"] == "FP32":
            values, block = np.frombuffer(block[:size], "<f4"), block[size:]
        else:
            texts, rest = [], block[:size]
            while rest:
                (length,) = struct.unpack_from("<I", rest)
                texts.append(rest[4 : 4 + length].decode())
                rest = rest[4 + length :]
            values, block = np.array(texts), block[size:]
        found[one["name"]] = values.reshape(one["shape"])
    assert block == b""
    return found


def expected(loaded: Loaded, array: np.ndarray) -> dict[str, np.ndarray]:
    """What the model and its heads say of normalised images."""
    batch = torch.from_numpy(array)
    found = dict(loaded.model.engine.encode(batch)._asdict())
    for name, head in loaded.heads.items():
        found[name] = head.logits(list(array)) if isinstance(head, ClassPredictor) else head.scores(batch)
    return {name: values.numpy() for name, values in found.items()}


async def test_images_as_bytes_and_as_json_give_what_the_model_says(client: httpx.AsyncClient, loaded: Loaded) -> None:
    body, headers = binary(ARRAY, id="7", parameters={"binary_data_output": True})
    answer = await client.post("/v2/models/tiny/infer", content=body, headers=headers)
    wanted = expected(loaded, ARRAY)
    found = tensors(answer)
    assert list(found) == ["cls", "patches", "registers", "animals", "ground", "far"]
    assert found["ground"].shape == (2, 2, 14, 21)
    tensor = {"name": "images", "datatype": "FP32", "shape": list(ARRAY.shape)}
    for data in (ARRAY.tolist(), ARRAY.ravel().tolist()):
        other = await client.post(
            "/v2/models/backbone/versions/1/infer", json={"inputs": [{**tensor, "data": data}], "id": "7"}
        )
        assert other.json()["id"] == "7"
        assert other.json()["model_name"] == "backbone"
        for name, values in tensors(other).items():
            np.testing.assert_allclose(values, wanted[name], atol=1e-4)
    for name, values in found.items():
        np.testing.assert_allclose(values, wanted[name], atol=1e-4)


async def test_the_backbone_runs_once_for_tokens_and_heads_after_its_norm(loaded: Loaded) -> None:
    backbone = loaded.model.engine.engine.backbone
    runs = []
    counted = backbone.blocks[0].register_forward_hook(lambda _, inputs, __: runs.append(len(inputs[0])))
    try:
        async with served(loaded) as (client, _):
            for outputs in (["cls", "animals", "ground"], ["animals", "ground"], ["cls"], ["ground"], ["cls", "far"]):
                runs.clear()
                body, headers = binary(ARRAY, outputs=[{"name": name} for name in outputs])
                found = tensors(await client.post("/v2/models/tiny/infer", content=body, headers=headers))
                assert list(found) == outputs
                times = 2 if "far" in outputs else 1  # depth reads the block before the final norm
                assert sum(runs) == times * len(ARRAY) * (1 + 2 + 6), outputs  # tokens of class, registers and patches
    finally:
        counted.remove()


def test_a_head_that_has_an_engine_of_its_own_runs_apart(tmp_path: Path) -> None:
    classes, _, _ = save_heads(tmp_path)
    model, other = tiny_model(0), tiny_model(0)
    heads = {"same": model.with_head(load_head(classes)), "apart": other.with_head(load_head(classes))}
    shared, found = share_blocks(model, heads)
    assert shares(shared, found["same"])
    assert not shares(shared, found["apart"])
    assert not shares(model, heads["same"])
    batch = torch.from_numpy(ARRAY)
    tokens, ran = run_once(shared, {"same": found["same"]}, batch)
    torch.testing.assert_close(tokens.cls, model.engine.encode(batch).cls)
    torch.testing.assert_close(ran["same"].logits(list(ARRAY)), heads["apart"].logits(list(ARRAY)))


async def test_files_as_bytes_and_as_base64_are_prepared_as_extract_does(
    client: httpx.AsyncClient, loaded: Loaded
) -> None:
    prepared = np.stack([loaded.model.preprocessing()(pixels(n, *size)) for n, size in enumerate([(33, 51), (40, 29)])])
    wanted = expected(loaded, prepared)
    outputs = [{"name": "ground", "parameters": {"binary_data": True}}, {"name": "cls"}]
    body, headers = binary(FILES, outputs=outputs)
    found = tensors(await client.post("/v2/models/ensemble/infer", content=body, headers=headers))
    assert list(found) == ["ground", "cls"]
    texts = [base64.b64encode(file).decode() for file in FILES]
    request = {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [2], "data": texts}], "outputs": outputs}
    other = tensors(await client.post("/v2/models/tiny/infer", json=request))
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4)
        np.testing.assert_allclose(other[name], wanted[name], atol=1e-4)


@pytest.mark.parametrize("as_bytes", [True, False])
async def test_the_best_classes_come_as_texts(client: httpx.AsyncClient, loaded: Loaded, as_bytes: bool) -> None:
    parameters = {"classification": 2, "binary_data": as_bytes}
    body, headers = binary(ARRAY, outputs=[{"name": "animals", "parameters": parameters}])
    found = tensors(await client.post("/v2/models/tiny/infer", content=body, headers=headers))["animals"]
    logits = expected(loaded, ARRAY)["animals"]
    assert found.shape == (2, 2)
    for row, values in zip(found, logits, strict=True):
        for text, number in zip(row, np.argsort(-values), strict=False):
            value, index, name = text.split(":")
            assert (int(index), name) == (number, ["cat", "dog", "owl"][number])
            assert float(value) == pytest.approx(values[number], abs=1e-4)


async def test_the_server_and_its_models_describe_themselves(client: httpx.AsyncClient) -> None:
    server = (await client.get("/v2")).json()
    assert "binary_tensor_data" in server["extensions"]
    model = (await client.get("/v2/models/tiny")).json()
    assert model == (await client.get("/v2/models/tiny/versions/1")).json()
    assert [one["name"] for one in model["inputs"]] == ["images", "encoded"]
    assert {one["name"]: one["shape"] for one in model["outputs"]} == {
        "cls": [-1, 48],
        "patches": [-1, -1, 48],
        "registers": [-1, 2, 48],
        "animals": [-1, 3],
        "ground": [-1, 2, -1, -1],
        "far": [-1, 1, -1, -1],
    }
    config = (await client.get("/v2/models/ensemble/versions/1/config")).json()
    assert config["input"] == [{"name": "encoded", "data_type": "TYPE_STRING", "dims": [-1]}]
    index = (await client.post("/v2/repository/index")).json()
    assert [one["name"] for one in index] == ["tiny", "backbone", "ensemble"]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/1/ready"):
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("path", "change", "status", "code", "field"),
    [
        ("tini", {}, 404, "model_not_found", "model_name"),
        ("tiny/versions/2", {}, 404, "version_not_found", "model_version"),
        ("ensemble", {}, 422, "unknown_input", "inputs.0.name"),
        ("tiny", {"outputs": [{"name": "clss"}]}, 422, "unknown_output", "outputs.0.name"),
        ("tiny", {"outputs": [{"name": "cls"}, {"name": "cls"}]}, 422, "duplicate_name", "outputs.1"),
        ("tiny", {"outputs": [{"name": "cls", "parameters": {"classification": 1}}]}, 422, "no_classes",
         "outputs.0.parameters.classification"),
        ("tiny", {"parameters": {"sequence_id": 4}}, 422, "invalid_value", "parameters.sequence_id"),
        ("tiny", {"outputs": [{"name": "cls", "parameters": {"shared_memory_region": "a"}}]}, 422, "invalid_value",
         "outputs.0.parameters.shared_memory_region"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_said_as_clients_of_the_protocol_read_it(
    client: httpx.AsyncClient, path: str, change: Mapping[str, Any], status: int, code: str, field: str
) -> None:
    body, headers = binary(ARRAY, **change)
    answer = await client.post(f"/v2/models/{path}/infer", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert (error["code"], error["field"]) == (code, field)
    assert isinstance(error["error"], str)


async def test_images_that_the_model_cannot_take_are_named(client: httpx.AsyncClient) -> None:
    for array, code in ((ARRAY[:, :2], "invalid_shape"), (ARRAY[:, :, :13], "invalid_shape")):
        body, headers = binary(array)
        answer = await client.post("/v2/models/tiny/infer", content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, code, "inputs.0")
    body, headers = binary([FILES[0], FILES[1][:60]])
    answer = await client.post("/v2/models/tiny/infer", content=body, headers=headers)
    assert (answer.status_code, answer.json()["field"]) == (422, "inputs.0.1")


async def test_answers_are_bounded_and_finite(loaded: Loaded) -> None:
    cls, patches = [{"name": "cls"}], [{"name": "patches", "parameters": {"binary_data": True}}]
    async with served(loaded, max_json_values=96, max_answer_bytes=2 * 6 * 48 * 4) as (client, _):
        for outputs, status in ((cls, 200), (patches, 200), ([*cls, *patches], 413)):
            body, headers = binary(ARRAY, outputs=outputs)
            assert (await client.post("/v2/models/tiny/infer", content=body, headers=headers)).status_code == status
        body, headers = binary(np.concatenate([ARRAY, ARRAY[:1]]), outputs=cls)
        assert (await client.post("/v2/models/tiny/infer", content=body, headers=headers)).status_code == 413
        body, headers = binary(np.full_like(ARRAY, 3e38), outputs=cls)
        answer = await client.post("/v2/models/tiny/infer", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "not_finite")


async def test_a_request_may_allow_less_time_than_the_server(loaded: Loaded) -> None:
    async with served(loaded, max_wait_ms=2000, max_batch=8) as (client, service):
        body, headers = binary(ARRAY, parameters={"timeout": 1000})
        answer = await client.post("/v2/models/tiny/infer", content=body, headers=headers)
        assert service.batcher.num_waiting == 0
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
