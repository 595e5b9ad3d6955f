"""Starts the Triton server that the package nvidia-pytriton carries, on a CPU, with its Python backend alone."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READY_WITHIN_S = 90


@contextmanager
def running(python: Path, repository: Path, folder: Path) -> Iterator[str]:
    """Yield the address, without http://, of a server with all models of a repository ready.

    Args:
        python: interpreter of an environment with nvidia-pytriton and what the models import.
        repository: of models.
        folder: for the backends and the log.
    """
    found = "import sys, sysconfig; print(sysconfig.get_path('purelib'), sysconfig.get_config_var('LIBDIR'), "
    found += "f'{sys.version_info.major}.{sys.version_info.minor}')"
    told = subprocess.run([python, "-c", found], capture_output=True, text=True, check=True, timeout=60).stdout
    packages, libraries, version = told.split()
    carried = Path(packages) / "pytriton/tritonserver"
    backends = folder / "backends"
    shutil.copytree(carried / "backends", backends)
    shutil.copy(carried / f"python_backend_stubs/{version}/triton_python_backend_stub", backends / "python")
    environment = {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        # The stub would take another libpython than that of its interpreter.
        "LD_LIBRARY_PATH": f"{libraries}{os.pathsep}{Path(packages) / 'nvidia_pytriton.libs'}",
        "VIRTUAL_ENV": str(python.parent.parent),
        "OMP_NUM_THREADS": "1",
    }
    http, grpc = _free_port(), _free_port()
    command = [
        carried / "bin/tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--allow-metrics=false",
        "--strict-readiness=true",
        "--exit-timeout-secs=10",
        "--disable-auto-complete-config",
    ]
    with (folder / "triton.log").open("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        try:
            _wait(f"http://127.0.0.1:{http}/v2/health/ready", server, folder / "triton.log")
            yield f"127.0.0.1:{http}"
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
            server.wait()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when all models are ready; the end of the log is the reason where they are not in time."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError(f"Triton is not ready: {log.read_text()[-4000:]}")
