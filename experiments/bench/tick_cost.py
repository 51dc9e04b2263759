"""What a tick of the controller costs, over real HTTP; run by `python -m experiments.bench tick`.

A process of its own, so that only what a controller loads counts: the pages are served by another
one (`experiments.bench.fake_fleet`), and nothing of the simulator is imported.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from policies import build_policy
from tuner.config import EndpointConfig, EngineConfig, ProcessesConfig, ScrapeConfig, TargetConfig
from tuner.config.mistakes import knobs_allowed
from tuner.control.audit_store import AuditStore, RunIdentity
from tuner.control.loop import tick
from tuner.core.clock import WallClock
from tuner.core.decision import Guardrails, Proposal, arbitrate, propose
from tuner.core.faults import Fault
from tuner.core.history import LENGTH, History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation, ReplicaObservation, ReplicaState
from tuner.core.protocols import Audit, Cluster, Policy
from tuner.guardrails import default_guardrails
from tuner.live.connect import connect

TICK_S = 15.0
BATCH_SIZES = (32, 48)
"""Every tick moves from one to the other, so that every replica is written to every time."""
IDENTITY = RunIdentity(
    policy="swing", policy_digest=None, config_digest="", version="0", authority="direct"
)


@dataclass(frozen=True)
class Swing:
    """Moves the batch size to and fro: the most that a policy can give the network to do."""

    name: str = "swing"

    def propose(self, history: History) -> Proposal:
        now = history.now.settings.get("batch_size", BATCH_SIZES[0])
        return Proposal({"batch_size": float(BATCH_SIZES[now == BATCH_SIZES[0]])})


@dataclass
class Running:
    """One target in the middle of its run."""

    cluster: Cluster
    history: History
    audit: Audit
    guardrails: Guardrails
    fallback: Policy

    def tick(self) -> None:
        self.history = tick(
            self.cluster,
            self.history,
            Swing(),
            self.guardrails,
            self.fallback,
            self.audit,
            "active",
        )

    @property
    def faults(self) -> tuple[Fault, ...]:
        return self.history.now.faults


@contextmanager
def served(replicas: int) -> Iterator[str]:
    """The pages of so many replicas; gives the address."""
    command = [sys.executable, "-m", "experiments.bench.fake_fleet", "--replicas", str(replicas)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            if server.stdout is None:
                raise RuntimeError("the pages have no output")
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


def targets_of(url: str, targets: int, replicas: int) -> list[TargetConfig]:
    """So many targets that share the replicas as evenly as possible."""
    shares = [list(range(replicas))[number::targets] for number in range(targets)]
    return [
        TargetConfig(
            name=f"target-{number}",
            policy="static",
            engine=EngineConfig(kind="vllm"),
            scrape=ScrapeConfig(),
            processes=ProcessesConfig(
                endpoints=tuple(EndpointConfig(f"replica-{r}", f"{url}/{r}") for r in share)
            ),
            tick_s=TICK_S,
            move=("batch_size",),
        )
        for number, share in enumerate(shares)
    ]


def measure_ticks(targets: int, replicas: int, ticks: int) -> dict[str, object]:
    """Wall and CPU time of so many rounds, in each of which every target ticks once, together."""
    with ExitStack() as stack:
        url = stack.enter_context(served(replicas))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        store = AuditStore.open(f"sqlite:///{Path(folder) / 'audit.db'}")
        stack.callback(store.close)
        began_s = perf_counter()
        running = [_started(target, store, stack) for target in targets_of(url, targets, replicas)]
        connected_s = perf_counter() - began_s
        threads = stack.enter_context(ThreadPoolExecutor(targets))
        for _ in range(2):
            # The first look knows no health and the second is the first with rates.
            list(threads.map(Running.tick, running))
        walls, cpus = [], []
        for _ in range(ticks):
            wall_s, cpu_s = perf_counter(), process_time()
            list(threads.map(Running.tick, running))
            walls.append(perf_counter() - wall_s)
            cpus.append(process_time() - cpu_s)
        now = [one.history.now for one in running]
        return {
            "tick_wall_s": statistics.median(walls),
            "tick_wall_s_all": walls,
            "tick_cpu_s": statistics.median(cpus),
            "connect_s": connected_s,
            "ready_replicas": sum(seen.ready_replicas or 0.0 for seen in now),
            "targets_with_rates": sum(seen.output_tokens_per_s is not None for seen in now),
            "faults": sorted({fault.sentence for one in running for fault in one.faults}),
            "moved": sum(
                one.history.decisions[-1].changes.get("batch_size") is not None for one in running
            ),
            "threads": threading.active_count(),
        }


def _started(target: TargetConfig, store: AuditStore, stack: ExitStack) -> Running:
    cluster = connect(target, WallClock(), writes=True)
    stack.callback(cluster.close)
    knobs = knobs_allowed(target)
    return Running(
        cluster,
        History(knobs),
        store.writer(target.name, identity=IDENTITY),
        default_guardrails(),
        build_policy("hpa", {"target": 1500.0}, knobs, tick_s=TICK_S),
    )


def full_history(target: TargetConfig, replicas: int) -> History:
    """As long as a history gets, of a target with so many replicas."""
    history = History(knobs_allowed(target))
    one = Observation(
        at_s=0.0,
        window_s=60.0,
        age_s=5.0,
        settings=KnobSettings(batch_size=32, replicas=replicas, threads=4, warmup_requests=0),
        qps=5.0 * replicas,
        prompt_tokens_per_s=2000.0 * replicas,
        output_tokens_per_s=750.0 * replicas,
        in_flight=18.0 * replicas,
        running=16.0 * replicas,
        queue_depth=2.0 * replicas,
        ready_replicas=float(replicas),
        starting_replicas=0.0,
        draining_replicas=0.0,
        status_replicas=float(replicas),
        replicas=tuple(
            ReplicaObservation(f"replica-{r}", ReplicaState.READY, 900.0, 16.0, 2.0)
            for r in range(replicas)
        ),
    )
    for number in range(LENGTH):
        history = history.observed(replace(one, at_s=TICK_S * number))
    return history


def measure_decision(
    policy: str, target: TargetConfig, replicas: int, repeat: int
) -> dict[str, object]:
    """Seconds of one decision without I/O: policy, fallback, guardrails, sentences."""
    knobs = knobs_allowed(target)
    rule = {"target": 1500.0}
    deciding = build_policy(policy, rule if policy == "hpa" else {}, knobs, tick_s=TICK_S)
    fallback = build_policy("hpa", rule, knobs, tick_s=TICK_S)
    guardrails, history = default_guardrails(), full_history(target, replicas)

    def decide() -> None:
        arbitrate(propose(deciding, history), history, guardrails, fallback)

    walls = _timed(decide, repeat)
    return {
        "median_s": statistics.median(walls),
        "p99_s": float(np.quantile(walls, 0.99)),
        "policy": policy,
        "replicas": replicas,
    }


def _timed(work: Callable[[], None], repeat: int) -> list[float]:
    work()
    walls = []
    for _ in range(repeat):
        began_s = perf_counter()
        work()
        walls.append(perf_counter() - began_s)
    return walls


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("targets", "replicas", "ticks", "repeat"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--policy", required=True)
    options = parser.parse_args(arguments)
    target = targets_of("http://127.0.0.1:1", options.targets, options.replicas)[0]
    per_target = max(1, options.replicas // options.targets)
    figures = {
        "decision": [
            measure_decision(options.policy, target, replicas, options.repeat)
            for replicas in sorted({per_target, options.replicas})
        ],
        **measure_ticks(options.targets, options.replicas, options.ticks),
        # Kilobytes on Linux.
        "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "torch_imported": "torch" in sys.modules,
        "config": vars(options),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
