"""A real Triton on the CPU: the server in the nvidia-pytriton wheel, with a model of a few lines.

`.ci/triton` makes its environment. The model answers IDS + 1 after 20 ms and batches; it takes its
numpy from that environment, since the stub would take another one that lies around.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from threading import Event
from time import monotonic
from types import TracebackType

import httpx

from tests.ports import free_ports
from tuner.engines import Replica

ROOT = Path(__file__).parents[2]
MODEL = "tiny"
START_S = 120.0
"""Longest wait for a start, s; 3 to 20 were seen."""

CONFIG = """
name: "tiny"
backend: "python"
max_batch_size: 8
input [{ name: "IDS" data_type: TYPE_INT64 dims: [ -1 ] }]
output [{ name: "OUT" data_type: TYPE_INT64 dims: [ -1 ] }]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 50000 }
instance_group [{ count: 1 kind: KIND_CPU }]
"""
PROGRAM = """
import sys
import time
sys.path.insert(0, {packages!r})
import triton_python_backend_utils as triton

def answer(request):
    ids = triton.get_input_tensor_by_name(request, "IDS").as_numpy()
    return triton.InferenceResponse([triton.Tensor("OUT", ids + 1)])

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.02)
        return [answer(request) for request in requests]
"""


class TritonServer:
    """One server on free loopback ports, until `close`.

    Args:
        folder: for the model repository, the backend and the log.
        explicit: whether models can be loaded on demand.
    """

    def __init__(self, folder: Path, *, explicit: bool = True) -> None:
        home = Path(os.environ.get("TUNER_TRITON_ENV") or ROOT / ".venv-triton").resolve()
        packages = next(home.glob("lib/python3.*/site-packages"))
        wheel = packages / "pytriton" / "tritonserver"
        self._lay_out(folder, packages, wheel)
        self.http_port, grpc_port, self.metrics_port = free_ports(3)
        self._log = folder / "triton.log"
        mode = ["explicit", f"--load-model={MODEL}"] if explicit else ["none"]
        command = [
            wheel / "bin" / "tritonserver",
            f"--model-repository={folder / 'models'}",
            f"--backend-directory={folder / 'backends'}",
            f"--model-control-mode={mode[0]}",
            *mode[1:],
            *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
            f"--http-port={self.http_port}",
            f"--grpc-port={grpc_port}",
            f"--metrics-port={self.metrics_port}",
            "--metrics-config=summary_latencies=true",
            "--exit-timeout-secs=5",
        ]
        libraries = [_library_folder(home), packages / "nvidia_pytriton.libs"]
        environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._wait()

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def replica(self) -> Replica:
        url = f"http://127.0.0.1:{self.http_port}"
        return Replica(
            "triton-0", url, url, MODEL, metrics_url=f"http://127.0.0.1:{self.metrics_port}"
        )

    def page(self) -> str:
        """The metrics page."""
        return httpx.get(self.replica.page("/metrics"), timeout=10.0).text

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=30.0)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=10.0)

    def _lay_out(self, folder: Path, packages: Path, wheel: Path) -> None:
        version = packages.parent.name.removeprefix("python")
        backend = folder / "backends" / "python"
        shutil.copytree(wheel / "backends" / "python", backend)
        stub = "triton_python_backend_stub"
        shutil.copy2(wheel / "python_backend_stubs" / version / stub, backend / stub)
        program = folder / "models" / MODEL / "1" / "model.py"
        program.parent.mkdir(parents=True)
        program.write_text(PROGRAM.format(packages=str(packages)), encoding="utf-8")
        (program.parents[1] / "config.pbtxt").write_text(CONFIG, encoding="utf-8")

    def _wait(self) -> None:
        end = monotonic() + START_S
        url = f"http://127.0.0.1:{self.http_port}/v2/models/{MODEL}/ready"
        while monotonic() < end and self._process.poll() is None:
            try:
                if httpx.get(url, timeout=5.0).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            Event().wait(0.2)
        tail = self._log.read_text(errors="replace")[-3000:]
        self.close()
        raise RuntimeError(f"tritonserver was not ready within {START_S:g} s:\n{tail}")


def _library_folder(home: Path) -> str:
    code = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    command = [home / "bin" / "python", "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=30.0
    ).stdout.strip()
