"""Many engines on one port: metrics pages of real size and the run-time configuration contract.

    python -m experiments.bench.fake_fleet --replicas 200

Prints the port and serves until it is ended. Replica N answers below `/N`: `/N/metrics`,
`/N/health`, `/N/v1/runtime_config`; `/api/v1/query` answers as a Prometheus server that has scraped
them for a minute. Counters grow with time, as of an engine under steady load. For measuring what
reads them: it runs as a process of its own, so that its time is nobody else's.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic

from envs.simulator.buckets import E2E_BOUNDS_S, TPOT_BOUNDS_S, TTFT_BOUNDS_S
from tuner.engines.contract import PATH, Contract, Knob, Status
from tuner.engines.engine import Metrics
from tuner.engines.vllm import METRICS
from tuner.live.metrics.fields import COUNTERS, GAUGES, specs

CEILING = 64
PAGE_BYTES = 53_000
"""Of a real vLLM 0.32 page; what our own names do not fill is filled with other histograms."""
NOW_S = 1_800_000_000.0
"""Time of the newest sample that the Prometheus server has."""
SCRAPE_S = 15.0
SCRAPES = 5
"""Samples of a series in a window of a minute."""
LABELS = 'engine="0",model_name="deepseek-r1"'
TOKEN_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)

Sample = tuple[str, str, float]
"""Name, labels as text, rise per second."""


def wanted_samples(metrics: Metrics) -> list[Sample]:
    """Everything on a page that fields are made from."""
    histograms: Mapping[str, Iterable[float]] = {
        "ttft_s": TTFT_BOUNDS_S,
        "tpot_s": TPOT_BOUNDS_S,
        "e2e_s": E2E_BOUNDS_S,
        "prompt_length": TOKEN_BOUNDS,
        "output_length": TOKEN_BOUNDS,
    }
    found = []
    for kind in (*COUNTERS, *GAUGES):
        for series in specs(metrics, kind):
            extra = "".join(f',{name}="{value}"' for name, value in series.labels.items())
            found.append((series.name, LABELS + extra, 3.0 if kind in COUNTERS else 0.0))
    for kind, numbers in histograms.items():
        for series in specs(metrics, kind):
            bounds = [*map(str, numbers), "+Inf"]
            for rank, bound in enumerate(bounds, start=1):
                share = rank / len(bounds)
                found.append((f"{series.name}_bucket", f'{LABELS},le="{bound}"', 3.0 * share))
    return found


class FakeFleet:
    """The replicas, as seen by one connection at a time."""

    def __init__(self, replicas: int) -> None:
        self._began_s = monotonic()
        self._contracts = [_contract() for _ in range(replicas)]
        self._samples = wanted_samples(METRICS)
        self._filler = _filler(PAGE_BYTES - len(self._own_lines()))
        self._fleet = _matrix(self._samples, replicas)

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body for one request."""
        if path.startswith("/api/v1/query?"):
            return 200, {"Content-Encoding": "gzip"}, self._fleet
        number, _, rest = path.lstrip("/").partition("/")
        if not number.isdigit() or int(number) >= len(self._contracts):
            return 404, {}, b""
        if rest == "metrics":
            return 200, {}, self._own_lines() + self._filler
        if rest == "health":
            return 200, {}, b""
        if f"/{rest}".startswith(PATH):
            response = self._contracts[int(number)].handle(method, f"/{rest}", headers, body)
            return response.status, response.headers, response.encoded()
        return 404, {}, b""

    def _own_lines(self) -> bytes:
        """The series that a controller reads, as they stand now."""
        elapsed_s = monotonic() - self._began_s
        return "".join(
            f"{name}{{{labels}}} {100.0 + rise * elapsed_s:.6f}\n"
            for name, labels, rise in self._samples
        ).encode()


def _filler(size: int) -> bytes:
    """Lines of other histograms, of that size or a little more."""
    lines: list[str] = []
    while size > 0:
        other, bound = divmod(len(lines), 22)
        lines.append(f'vllm:other_{other}_seconds_bucket{{{LABELS},le="{bound}"}} {bound}.0\n')
        size -= len(lines[-1])
    return "".join(lines).encode()


def _matrix(samples: Sequence[Sample], replicas: int) -> bytes:
    """A Prometheus server's answer about the whole fleet over one window, packed as it would be."""
    times = [NOW_S - SCRAPE_S * step for step in reversed(range(SCRAPES))]
    result = []
    for replica in range(replicas):
        at = {"pod": f"r-{replica}", "instance": f"10.0.0.{replica}:8000", "job": "vllm"}
        for name, labels, rise in samples:
            pairs = [part.partition("=") for part in labels.split(",")]
            metric: dict[str, str] = {"__name__": name, **at}
            metric |= {label: value.strip('"') for label, _, value in pairs}
            values = [[t, str(100.0 + rise * (t - times[0]))] for t in times]
            result.append({"metric": metric, "values": values})
    answer = {"status": "success", "data": {"resultType": "matrix", "result": result}}
    return gzip.compress(json.dumps(answer).encode(), compresslevel=1)


def _contract() -> Contract:
    return Contract(
        {"batch_size": Knob(CEILING, 1, CEILING, "sequences")},
        lambda values: None,
        lambda: Status(running=16, waiting=2),
        engine="vllm",
        engine_version="0.33.0",
        model="deepseek",
        token=None,
        min_interval_s=0.0,
    )


async def serve(fleet: FakeFleet) -> None:
    """Answer on a free port of loopback, and print which one."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _exchange(fleet, reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _exchange(
    fleet: FakeFleet, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """One request and its answer; False at the end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {
        name.strip().lower(): value.strip()
        for name, colon, value in (line.partition(":") for line in rest)
        if colon
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    status, more, payload = fleet.answer(method, path, headers, body)
    lines = [f"HTTP/1.1 {status} .", f"Content-Length: {len(payload)}"]
    lines += [f"{name}: {value}" for name, value in more.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + payload)
    await writer.drain()
    return headers.get("connection", "").lower() != "close"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, required=True)
    asyncio.run(serve(FakeFleet(parser.parse_args().replicas)))


if __name__ == "__main__":
    main()
