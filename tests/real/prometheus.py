"""A real Prometheus server for tests: Debian's, on a free loopback port."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Scrape:
    """One page to scrape: where, and the labels that its series get."""

    address: str
    """HOST:PORT."""
    labels: Mapping[str, str]
    path: str = "/metrics"


def binary() -> str:
    """The server's path.

    Raises:
        FileNotFoundError: there is none.
    """
    # `make setup` unpacks Debian's package into the virtual environment.
    unpacked = Path(sys.prefix) / "prometheus" / "usr" / "bin" / "prometheus"
    found = shutil.which("prometheus") or (str(unpacked) if unpacked.exists() else None)
    if found is None:
        raise FileNotFoundError(
            f"prometheus is neither in PATH nor at {unpacked}; run `make setup`, or install it"
        )
    return found


class Prometheus:
    """A server that scrapes some pages; it can be stopped and started again on its data.

    Use as a context manager.

    Args:
        folder: for configuration, data and log; kept.
        scrapes: the pages.
        interval_s: between two scrapes of a page, >= 0.1.
    """

    def __init__(self, folder: Path, scrapes: list[Scrape], *, interval_s: float = 1.0) -> None:
        self._folder = folder
        self._interval_ms = round(interval_s * 1000)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.scrape(scrapes)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def scrape(self, scrapes: list[Scrape]) -> None:
        """From now on scrape these; a running server is told."""
        jobs = [
            {
                "job_name": f"job-{index}",
                "metrics_path": scrape.path,
                "static_configs": [{"targets": [scrape.address], "labels": dict(scrape.labels)}],
            }
            for index, scrape in enumerate(scrapes)
        ]
        interval = f"{self._interval_ms}ms"
        config = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval},
            "scrape_configs": jobs,
        }
        # JSON is YAML.
        (self._folder / "prometheus.yml").write_text(json.dumps(config))
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGHUP)

    def start(self) -> None:
        """Start, and wait until it is ready."""
        with (self._folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    binary(),
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                log_text = (self._folder / "prometheus.log").read_text()[-2000:]
                self.stop()
                raise RuntimeError(f"prometheus did not get ready:\n{log_text}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it in an orderly way; the data stay."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Prometheus:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
