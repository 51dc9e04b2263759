"""The golden trace: recorded ticks with their decisions, which a refactoring must leave unchanged.

`python -m tests.control.golden` records it anew. Its diff is what a change of behaviour looks like.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from policies.codec import Codec
from policies.rule import RulePolicy
from tests.envs import worlds
from tests.envs.test_parity import MOVE, Script, actions, bold, cluster_of
from tuner.control.loop import ticks
from tuner.control.replay import write_records
from tuner.core.audit import MemoryAudit
from tuner.core.history import History
from tuner.guardrails import default_guardrails

FILE = Path(__file__).parent / "golden.jsonl"
TICKS = 40


def codec() -> Codec:
    return bold(worlds.codec(worlds.knobs(), move=MOVE))


def policy() -> Script:
    """Follows a fixed list of actions, some of them absurd."""
    return Script(codec(), actions(1, TICKS)[:, 0])


def fallback() -> RulePolicy:
    return worlds.hpa(worlds.knobs())


def record() -> None:
    config = worlds.config(episode_ticks=TICKS + 1)
    cluster, clock = cluster_of(0, codec(), config)
    audit = MemoryAudit()
    loop = ticks(
        cluster,
        clock,
        History(worlds.knobs()),
        policy(),
        default_guardrails(),
        fallback(),
        audit,
        "simulate",
        every_s=config.tick_s,
    )
    list(islice(loop, TICKS))
    write_records(audit.records, FILE)


if __name__ == "__main__":
    record()
