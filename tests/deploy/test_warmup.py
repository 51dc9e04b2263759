"""The warm-up script as it runs in a pod: real sh, real HTTP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "warmup" / "warmup.sh"
TOOLS = ("sh", "cat", "date", "dirname", "head", "mkdir", "mktemp", "mv", "rm", "sed", "sleep")
TOOLS += ("tr", "wc")
KEY = "a-secret"


class Engine:
    """A stand-in with the three endpoints that the script uses."""

    def __init__(self) -> None:
        self.unhealthy = 0
        """Answers 503 to so many health requests first."""
        self.fail = False
        self.hang = threading.Event()
        self.hang.set()
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/health":
                    engine.unhealthy -= 1
                    self.reply(503 if engine.unhealthy >= 0 else 200, {})
                else:
                    permission = [{"id": "modelperm-1", "object": "model_permission"}]
                    model = {"id": "deep/seek", "object": "model", "permission": permission}
                    self.reply(200, {"object": "list", "data": [model]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with engine.lock:
                    engine.asked.append(body)
                    engine.keys.add(self.headers.get("Authorization"))
                    engine.at_once += 1
                    engine.most_at_once = max(engine.most_at_once, engine.at_once)
                engine.hang.wait(20)
                with engine.lock:
                    engine.at_once -= 1
                self.reply(500 if engine.fail else 200, {"choices": [{"text": "x"}]})

            def reply(self, status: int, answer: dict[str, Any]) -> None:
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    thread = threading.Thread(target=engine.server.serve_forever, args=(0.02,))
    thread.start()
    yield engine
    engine.hang.set()
    engine.server.shutdown()
    engine.server.server_close()
    thread.join()


@pytest.fixture(params=["curl", "python3"])
def path(request, tmp_path) -> str:
    """A PATH with the tools of a small image, and one of the two ways to send a request."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tools = {tool: shutil.which(tool) for tool in (*TOOLS, "curl")}
    tools["python3"] = sys.executable
    for tool in (*TOOLS, request.param):
        found = tools[tool]
        if found is None:
            pytest.skip(f"{tool} is not installed")
        # Not a link: Python and busybox look at the name that they were called by.
        (folder / tool).write_text(f'#!/bin/sh\nexec "{found}" "$@"\n')
        (folder / tool).chmod(0o755)
    return str(folder)


def warm_up(tmp_path: Path, path: str, url: str, count: str | None, **more: str) -> str:
    """What the gate says when the script has ended."""
    count_file, signal = tmp_path / "warmup_requests", tmp_path / "run" / "warm"
    if count is not None:
        count_file.write_text(count)
    environment = {
        "PATH": path,
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        "WARMUP_URL": url,
        "WARMUP_REQUESTS_FILE": str(count_file),
        "WARMUP_SIGNAL": str(signal),
        "WARMUP_SIZES": "2 30",
        "WARMUP_CONCURRENCY": "2",
        "WARMUP_TIMEOUT_S": "60",
        **more,
    }
    subprocess.run(
        [f"{path}/sh", SCRIPT], env=environment, timeout=50, check=True, capture_output=True
    )
    return signal.read_text().strip()


def test_sends_that_many_requests_over_the_sizes_and_opens_the_gate(tmp_path, path, engine):
    assert warm_up(tmp_path, path, engine.url, "5\n") == "5 of 5 requests answered"
    assert {body["model"] for body in engine.asked} == {"deep/seek"}
    sizes = sorted(len(body["prompt"].split()) for body in engine.asked)
    assert sizes == [2, 2, 2, 30, 30]
    assert len({body["prompt"] for body in engine.asked}) == 5
    assert engine.most_at_once <= 2


def test_waits_until_the_engine_is_healthy(tmp_path, path, engine):
    engine.unhealthy = 1
    assert warm_up(tmp_path, path, engine.url, "1") == "1 of 1 requests answered"
    assert engine.unhealthy < 0


@pytest.mark.parametrize("count", ["0", "", "many", None], ids=["none", "empty", "text", "no file"])
def test_opens_the_gate_at_once_where_nothing_is_asked_for(tmp_path, path, engine, count):
    assert warm_up(tmp_path, path, engine.url, count) == "no requests asked for"
    assert engine.asked == []


def test_counts_failed_requests_and_opens_the_gate_all_the_same(tmp_path, path, engine):
    engine.fail = True
    assert warm_up(tmp_path, path, engine.url, "3") == "0 of 3 requests answered"
    assert len(engine.asked) == 3


def test_opens_the_gate_when_the_engine_never_comes_up(tmp_path, path, engine):
    engine.unhealthy = 1000
    gate = warm_up(tmp_path, path, engine.url, "3", WARMUP_TIMEOUT_S="1")
    assert gate == "timed out: the replica was never healthy"
    assert engine.asked == []


def test_opens_the_gate_when_the_engine_hangs(tmp_path, path, engine):
    engine.hang.clear()
    gate = warm_up(tmp_path, path, engine.url, "9", WARMUP_TIMEOUT_S="2")
    assert gate == "timed out after 0 of 9 requests"


def test_sends_the_key_and_shows_it_to_nobody(tmp_path, path, engine):
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    warm_up(tmp_path, path, engine.url, "2", WARMUP_API_KEY_FILE=str(key_file))
    assert engine.keys == {f"Bearer {KEY}"}
