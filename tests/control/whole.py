"""The whole controller over real sockets, allowed to act, and what it leaves behind."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tests.config.files import target, write
from tests.live.fake_engine import FakeEngine
from tuner.config import TargetConfig
from tuner.config.file import load_config
from tuner.control.assembly import Orders, Reach
from tuner.control.audit_store import AuditStore
from tuner.control.logs import logger_to
from tuner.control.service import RunningCluster
from tuner.control.start import run_controller
from tuner.core.clock import Clock
from tuner.core.decision import Decision, Receipt
from tuner.live.connect import connect

FREE = {"host": "127.0.0.1", "port": 0}


def beside(engines: Sequence[FakeEngine]) -> dict[str, Any]:
    """A `processes` section with these engines."""
    return {
        "endpoints": [
            {"name": f"e{i}", "url": engine.url, "control_url": engine.control_url}
            for i, engine in enumerate(engines)
        ]
    }


class Ended:
    """Exit code, log lines, page and audit log of a controller that ran for some ticks.

    Args:
        engines: its replicas.
        ticks: so many, then it leaves.
        before_apply: called in every tick when all is read and recorded and nothing is written.
        changes: of the target's section; `...` takes a key away.
    """

    def __init__(
        self,
        folder: Path,
        engines: list[FakeEngine],
        *,
        ticks: int = 2,
        before_apply: Callable[[], None] = lambda: None,
        **changes: Any,
    ) -> None:
        self.engines = engines
        wanted: dict[str, Any] = {
            "engine": {"kind": "vllm", "timeout_s": 0.5, "ttl_s": 60.0},
            "prometheus": ...,
            "scrape": {},
            "kubernetes": ...,
            "processes": beside(engines),
            "policy": "static",
            "policy_options": {"batch_size": 16},
            "knobs": {"batch_size": {"low": 1, "high": 64}},
            "move": ["batch_size"],
            "tick_s": 0.2,
            **changes,
        }
        config = load_config(write(folder, target(**wanted), server=FREE))
        output = io.StringIO()
        self.page = ""

        def reach(one: TargetConfig, clock: Clock, writes: bool) -> RunningCluster:
            cluster = connect(one, clock, writes=writes)
            apply, close = cluster.apply, cluster.close

            def apply_after(decision: Decision) -> Receipt:
                before_apply()
                return apply(decision)

            def read_the_page_and_close() -> None:
                (line,) = self.of("page", output)
                with urlopen(line["url"] + "/metrics", timeout=10) as answer:
                    self.page = answer.read().decode()
                close()

            cluster.apply = apply_after  # type: ignore[method-assign]
            cluster.close = read_the_page_and_close  # type: ignore[method-assign]
            return cluster

        orders = Orders("active", ticks=ticks, without_evidence="a test")
        self.code = run_controller(config, orders, Reach(reach), logger_to(output), output)
        self.output = output
        store = AuditStore.open(config.audit, read_only=True)
        self.decisions = store.decisions("r1")
        store.close()

    def of(self, event: str, output: io.StringIO | None = None) -> list[dict[str, Any]]:
        text = (output or self.output).getvalue()
        return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]

    @property
    def sentences(self) -> str:
        """Of every trouble that was told."""
        return " ".join(line["sentence"] for line in self.of("fault"))

    def faults(self, phase: str, reason: str, where: str) -> float:
        """The figure on the page; 0 where there is none."""
        labels = f'{{phase="{phase}",reason="{reason}",target="r1",where="{where}"}} '
        for line in self.page.splitlines():
            if line.startswith(f"tuner_faults_total{labels}"):
                return float(line.rpartition(" ")[2])
        return 0.0

    def went_well(self) -> bool:
        """No failed tick, no traceback, every decision with its receipt."""
        return (
            self.code == 0
            and "Traceback" not in self.output.getvalue()
            and 'tuner_tick_failures_total{target="r1"} 0.0' in self.page
            and all(stored.record.receipt is not None for stored in self.decisions)
        )

    def nothing_was_written(self) -> bool:
        asked = [body for engine in self.engines for body in engine.patches]
        return all(body.get("dry_run") for body in asked)
