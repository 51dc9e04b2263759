"""A real vLLM with the plugin, on loopback, from start to end.

`launch(...)` gives the command line and the environment with `{port}` and `{control_port}` left
open, as `processes.command` and `processes.environment` of tuner.yaml want them; `VllmServer` runs
it here.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.ports import free_port
from tests.real import model

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "deploy" / "vllm_plugin"
READY_S = 300.0
"""Longest wait for the first completion; 25 to 80 s were seen on two contended cores."""
STOP_S = 60.0
IDLE_S = 60.0
"""Longest wait for the end of what a test has left in an engine."""
LAST_LINES = 40
NOISE = re.compile(
    r'^INFO: .* - ".*" 200 OK$'
    r'|^INFO: .* - "GET /v1/runtime_config HTTP/1.1" 404 Not Found$'  # not on the serving port
    r"|\[launcher\.py:\d+\] Route: "
)
"""Lines of an engine's log that a failure does not show."""
UNIPROC = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


@dataclass(frozen=True)
class Launch:
    """How to start one engine; `{port}` and `{control_port}` stand for its two ports."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the starter."""
    token_file: Path | None = None

    def filled(self, port: int, control_port: int) -> tuple[list[str], dict[str, str]]:
        def fill(text: str) -> str:
            return text.replace("{port}", str(port)).replace("{control_port}", str(control_port))

        return [fill(word) for word in self.command], {
            name: fill(value) for name, value in self.environment.items()
        }


def launch(
    python: Path,
    model_folder: Path,
    token_file: Path,
    *,
    max_num_seqs: int = 32,
    min_interval_s: float = 0.0,
    more: Sequence[str] = (),
) -> Launch:
    """The tiny DeepSeek-V3 with the plugin.

    Args:
        python: interpreter of the engine's environment (`vllm_env.engine_python()`).
        model_folder: `vllm_env.engine_model()`.
        token_file: bearer token of the control port; must exist before the start.
        max_num_seqs: ceiling of `batch_size`.
        more: further arguments of vLLM.
    """
    command = (
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model_folder), "--served-model-name", model.NAME),
        *("--host", "127.0.0.1", "--port", "{port}"),
        *("--dtype", "float32", "--max-model-len", str(model.LONGEST)),
        *("--load-format", "dummy", "--enforce-eager", "--max-num-seqs", str(max_num_seqs)),
        # On a CPU with AMX vLLM would take a backend for bfloat16 alone.
        *("--attention-backend", "CPU_MLA"),
        # In the scheduler's own process. A worker of its own waits for its next step with
        # sched_yield for up to a second, on the one core that vLLM binds every worker on this host
        # to: with two engines the second one's worker ran 14 s and waited 123 s for that core
        # while the first served 4 requests/s, and completed nothing. "uni" would be turned into
        # "mp" again.
        *("--distributed-executor-backend", UNIPROC),
        *("--scheduler-cls", "tuner_vllm.scheduler.TunerScheduler"),
        *("--middleware", "tuner_vllm.middleware.TunerControl"),
        *more,
    )
    environment = {
        "PYTHONPATH": str(PLUGIN),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # What vLLM gives a worker of its own; several engines share the cores as they come.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TUNER_CONTROL_HOST": "127.0.0.1",
        "TUNER_CONTROL_PORT": "{control_port}",
        "TUNER_CONTROL_TOKEN_FILE": str(token_file),
        "TUNER_CONTROL_MIN_INTERVAL_S": f"{min_interval_s:g}",
    }
    return Launch(command, environment, token_file)


class EngineFailedError(RuntimeError):
    """The engine ended or did not get ready; the message carries the end of its log."""


class VllmServer:
    """One engine process with its children, from `start` to `stop`; also a context manager, which
    waits until it is ready.

    Args:
        log: file that takes everything the engine says.
        port, control_port: free ones are taken if not given.
    """

    def __init__(
        self, launch: Launch, log: Path, *, port: int | None = None, control_port: int | None = None
    ) -> None:
        self.launch = launch
        self.log = log
        self.port = port or free_port()
        self.control_port = control_port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.control_url = f"http://127.0.0.1:{self.control_port}"
        self.model = model.NAME
        self._process: subprocess.Popen[bytes] | None = None
        # One client for all calls: each new one loads its certificates anew, on the same cores.
        self._http = httpx.Client(timeout=60.0)

    @property
    def token(self) -> str:
        if self.launch.token_file is None:
            return ""
        return self.launch.token_file.read_text(encoding="utf-8").strip()

    def start(self) -> None:
        """Start it and come back at once."""
        command, environment = self.launch.filled(self.port, self.control_port)
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        with open(self.log, "ab") as out:
            self._process = subprocess.Popen(
                command,
                env={**inherited, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Come back when one real completion has gone through.

        Raises:
            EngineFailedError: if the process ends first, or the time is over.
        """
        self.wait_for(self._completes, timeout_s, "ready")

    def wait_for(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Come back when `condition` holds of an engine that lives.

        Raises:
            EngineFailedError: if the process ends first, or the time is over.
        """
        process = self._started()

        def settled() -> bool:
            return process.poll() is not None or condition()

        if not _until(settled, timeout_s):
            raise EngineFailedError(f"not {what} after {timeout_s:g} s\n{self.tail()}")
        if process.poll() is not None:
            raise EngineFailedError(f"ended with status {process.returncode}\n{self.tail()}")

    def wait_ended(self, timeout_s: float) -> int:
        """Exit status, of an engine that is to end by itself.

        Raises:
            EngineFailedError: if it still runs then.
        """
        process = self._started()
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise EngineFailedError(f"still running after {timeout_s:g} s\n{self.tail()}") from None

    def complete(
        self, *, tokens: int = 1, prompt: str = "ka lo mi", timeout_s: float = 60.0
    ) -> Any:
        """One real completion of exactly `tokens` tokens; vLLM's answer."""
        answer = self._http.post(
            f"{self.url}/v1/completions",
            json={
                "model": self.model,
                "prompt": prompt,
                "max_tokens": tokens,
                "ignore_eos": True,
                "temperature": 0,
            },
            timeout=timeout_s,
        )
        answer.raise_for_status()
        return answer.json()

    def control(
        self,
        method: str = "GET",
        path: str = "/v1/runtime_config",
        body: object = None,
        *,
        tag: str | None = None,
        token: str | None = None,
    ) -> httpx.Response:
        """One call to the control port; `token` None sends the right one, "" none."""
        used = self.token if token is None else token
        headers = {"Authorization": f"Bearer {used}"} if used else {}
        if tag is not None:
            headers["If-Match"] = tag
        return self._http.request(method, self.control_url + path, json=body, headers=headers)

    def serving(self, method: str, path: str) -> httpx.Response:
        """One call to the serving port, with the control port's token: it must be worth nothing."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return self._http.request(method, self.url + path, headers=headers)

    def gauge(self, name: str) -> float:
        """Sum of one metric over its labels, from the page."""
        page = self.serving("GET", "/metrics").text
        lines = [line for line in page.splitlines() if line.startswith((name + "{", name + " "))]
        if not lines:
            raise LookupError(f"{name} is not on the page")
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def pids(self) -> list[int]:
        """The API server and all that live of what it started."""
        if self._process is None:
            return []
        return _family(self._process.pid)

    def stop(self, timeout_s: float = STOP_S) -> None:
        """SIGTERM to the API server; comes back when all its processes have ended.

        Raises:
            EngineFailedError: if some had to be killed.
        """
        if self._process is None:
            return
        family = self.pids()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        process, self._process = self._process, None
        ended = _until(lambda: process.poll() is not None and not _living(family), timeout_s)
        left = _living(family)
        for pid in left:
            _kill(pid)
        process.wait(10.0)
        if not ended:
            raise EngineFailedError(
                f"{len(left)} of its processes still ran {timeout_s:g} s after SIGTERM, and were "
                f"killed\n{self.tail()}"
            )

    def tail(self, lines: int = LAST_LINES) -> str:
        """The end of the log, for a failure's message."""
        return tail(self.log, lines)

    def logs(self) -> dict[str, str]:
        """What a failed test shows."""
        return {f"{self.log.name} of the shared engine": self.tail()}

    def hand_on(self, timeout_s: float = IDLE_S) -> None:
        """Make it fit for the next test: started again if it has ended, and idle.

        Raises:
            EngineFailedError: somebody still sends to it, or it does not start.
        """
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self.start()
            self.wait_ready()
        self.wait_for(self._idle, timeout_s, "idle: what a test started still sends")

    def __enter__(self) -> VllmServer:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EngineFailedError("not started")
        return self._process

    def _idle(self) -> bool:
        return not any(self.gauge(f"vllm:num_requests_{name}") for name in ("running", "waiting"))

    def _completes(self) -> bool:
        try:
            self.complete(timeout_s=60.0)
        except httpx.HTTPError:
            return False
        return True


def tail(log: Path, lines: int = LAST_LINES) -> str:
    """The end of an engine's log without its noise."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join([line for line in text.splitlines() if not NOISE.search(line)][-lines:])


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    pause = threading.Event()
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(0.2)
    return True


def _family(root: int) -> list[int]:
    """The processes of a session that live, its first one first; a parent may have died."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    stats = {pid: _stat(pid) for pid in pids}
    family = [pid for pid, stat in stats.items() if stat is not None and stat[3] == str(root)]
    return _living(sorted(family, key=lambda pid: (pid != root, pid)))


def _living(pids: Sequence[int]) -> list[int]:
    states = {pid: _stat(pid) for pid in pids}
    return [pid for pid, state in states.items() if state is not None and state[0] != "Z"]


def _stat(pid: int) -> list[str] | None:
    """State, parent, process group, session; None: no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[:4]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
