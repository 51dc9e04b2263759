from dataclasses import dataclass, replace

import pytest

from policies import build_policy
from policies.floor import FloorPolicy
from tests.policies.test_contract import HEALTHY, KNOBS
from tuner.core.decision import Proposal
from tuner.core.history import History
from tuner.core.knobs import KnobSettings


@dataclass(frozen=True)
class Wants:
    """Always proposes the same, and counts its own calls in its memory."""

    replicas: float | None
    name: str = "wants"

    def propose(self, history):
        calls = history.memory[0] + 1 if history.memory else 1.0
        settings = {} if self.replicas is None else {"replicas": self.replicas}
        return Proposal({**settings, "batch_size": 64.0}, (calls,), why="because")


NOW = History(KNOBS).observed(replace(HEALTHY, settings=KNOBS.defaults().with_(replicas=4)))


@pytest.mark.parametrize(
    ("native", "floor", "replicas"),
    [
        (3, 6, 6),  # the policy raises the minimum
        (6, 3, 6),  # a low minimum takes nothing away
        (6, None, 6),  # the policy leaves the knob alone
        (None, 6, 6),  # the native rule cannot tell, the minimum stands
        (None, 2, 4),  # and stays where it is above it
    ],
)
def test_the_larger_of_both_counts(native, floor, replicas):
    proposal = FloorPolicy(Wants(floor), Wants(native), 1).propose(NOW)
    assert proposal.settings == {"replicas": replicas, "batch_size": 64.0}


def test_nobody_knows_anything():
    unknown = History(KNOBS).observed(replace(HEALTHY, settings=KnobSettings()))
    assert "replicas" not in FloorPolicy(Wants(None), Wants(None), 1).propose(unknown).settings


def test_each_keeps_its_own_memory():
    hpa = build_policy("hpa", {"target": 1.0}, KNOBS, tick_s=15.0)
    policy = FloorPolicy(Wants(2), hpa, hpa.rule.memory_size)
    history, alone = NOW, NOW
    for _ in range(3):
        both, single = policy.propose(history), hpa.propose(alone)
        assert both.memory[: hpa.rule.memory_size] == pytest.approx(single.memory, nan_ok=True)
        history, alone = replace(history, memory=both.memory), replace(alone, memory=single.memory)
    assert both.memory[hpa.rule.memory_size :] == (3.0,)
