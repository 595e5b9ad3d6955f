"""A command with a page as a process of its own: started, killed at any moment, and started again."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

READY_WITHIN_S = 120  # machines of tests are busy
ADDRESS = re.compile(r"http://\S+?\?token=[\w-]+")


class PageServer:
    """`python COMMAND... --port PORT`, always on the same port.

    Attributes:
        address: of the page with its token, as the command printed it.
        log: what it printed, of all starts.
    """

    def __init__(self, folder: Path, *command: str | Path, port: int | None = None) -> None:
        self.port = port or _free_port()
        self.log = folder / f"log-{self.port}"
        self._command = [sys.executable, *map(str, command), f"--port={self.port}"]
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def start(self) -> "PageServer":
        """Start it, and wait until it says where the page is."""
        begins = len(self.printed())
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(
                self._command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        ends = time.monotonic() + READY_WITHIN_S
        while not (found := ADDRESS.search(self.printed(), begins)):
            assert self._process.poll() is None, self.printed()
            assert time.monotonic() < ends, self.printed()
            time.sleep(0.05)
        self.address = found[0]
        return self

    def printed(self) -> str:
        """Return what it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it as a loss of power would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "PageServer":
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert "Traceback" not in self.printed(), self.printed()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
