"""`tuner record` on a real Prometheus: totals are the engines' own, over restarts of both."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack

from click.testing import CliRunner
from typer.main import get_command

from envs.workloads.recorded import from_telemetry
from tests.live.engine_page import serving
from tests.real.controller import reach
from tests.real.live_engine import AT_WORK, LiveEngine
from tests.real.prometheus import Prometheus, Scrape
from tuner.cli import app
from tuner.data.telemetry import read_telemetry

CONFIG = """
schema: tuner.config/1
targets:
  - name: r1
    policy: static
    policy_options: {{replicas: 2}}
    fallback: static
    fallback_options: {{replicas: 2}}
    engine: {{kind: vllm}}
    prometheus: {{url: "{url}", selector: {{app: r1}}}}
    processes:
      endpoints: [{{name: r0, url: "http://127.0.0.1:9"}}]
    move: []
"""


def test_totals_equal_the_counters_over_restarts_of_prometheus_and_of_an_engine(tmp_path):
    began_s = time.time()
    engines = [LiveEngine(30.0), LiveEngine(20.0, restart_at=9)]
    out, config = tmp_path / "telemetry.parquet", tmp_path / "tuner.yaml"

    def scraped(times: int) -> None:
        """Both engines so often more."""
        wanted = [engine.scrapes + times for engine in engines]
        reach(lambda: all(e.scrapes >= w for e, w in zip(engines, wanted, strict=True)), "scraped")

    def record(*options: str) -> dict:
        arguments = ["record", "--config", str(config), "--out", str(out), "--every", "1s"]
        found = CliRunner().invoke(get_command(app), [*arguments, "--json", *options])
        assert found.exit_code == 0, found.exception
        facts: dict = json.loads(found.stdout)
        return facts

    with ExitStack() as parts:
        urls = [parts.enter_context(serving(engine)) for engine in engines]
        scrapes = [
            Scrape(url.removeprefix("http://"), {"pod": f"r{index}", "app": "r1"})
            for index, url in enumerate(urls)
        ]
        server = parts.enter_context(Prometheus(tmp_path / "server", scrapes, interval_s=0.5))
        config.write_text(CONFIG.format(url=server.url))
        scraped(6)
        first = record("--since", f"{time.time() - began_s + 5:.0f}s")
        server.stop()
        # The engines go on while nobody looks.
        server.start()
        scraped(6)
        for engine in engines:
            engine.rest()
        scraped(2)
        # Windows end with whole seconds: the last rise must lie before the last one.
        last_s = time.time()
        reach(lambda: int(time.time()) > last_s, "the next second")
        whole = record()
    done = sum(engine.done - (engine.first_seen or 0) for engine in engines)
    assert done > 100
    assert 0 < first["totals"]["requests_finished"] < done
    assert whole["asked_from_s"] == first["until_s"]
    assert whole["totals"]["requests_finished"] == done
    assert whole["totals"]["prompt_tokens"] == 24 * done
    assert whole["totals"]["output_tokens"] == 16 * done
    assert whole["totals"]["requests_failed"] == 0
    recorded = read_telemetry(out)
    rows = recorded.table.to_pylist()
    assert len(rows) == whole["windows"]
    for name in ("ttft_s", "e2e_s", "prompt_length"):
        assert sum(sum(row[f"{name}_counts"] or []) for row in rows) == done
    rebuilt = from_telemetry(recorded, seed=1)
    assert (rebuilt.left_out, rebuilt.trace.gaps) == (0, ())
    # Where the first window holds one engine only, the other comes with what it has at work.
    assert len(rebuilt.trace) - done in (0, AT_WORK)
    assert rebuilt.trace.prompt_tokens.sum() == 24 * done
    assert rebuilt.trace.output_tokens.sum() == 16 * done
