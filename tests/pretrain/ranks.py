"""Several processes of one run on this computer, without torchrun."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["foveal.pretrain.loop"])  # imported once, not once a process


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun says to a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def on_ranks(
    size: int, function: Callable[..., Any], *arguments: Any, heard: int | None = None, deadline_s: float = 100
) -> list[Any]:
    """Return what `function(*arguments)` returns on each of `size` processes; an exception is returned as itself.

    None stands for a process that was killed. Only the first `heard` processes are waited for.
    """
    port, started = free_port(), []
    for rank in range(size):
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(
            target=_run, args=(theirs, environment(rank, size, port), function, arguments), daemon=False
        )
        process.start()
        theirs.close()
        started.append((process, ours))
    try:
        return [_received(ours, deadline_s) for _, ours in started[:heard]]
    finally:
        for process, _ in started[:heard]:
            process.join(10)
        for process, _ in started:
            process.kill()


def _received(pipe: Connection, deadline_s: float) -> Any:
    if not pipe.poll(deadline_s):
        raise TimeoutError(f"a process neither answered nor ended within {deadline_s} s")
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return None


def _run(pipe: Connection, variables: dict[str, str], function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    try:
        result = function(*arguments)
    except Exception as error:
        result = error
    pipe.send_bytes(pickle.dumps(result))  # send() would leave tensors behind in the memory of this process
