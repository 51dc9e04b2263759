"""What nobody can beat by much: plans made with the whole load known, judged by the simulator."""

from experiments.oracles.result import (
    CLAIRVOYANT,
    INSTANT,
    Frontier,
    OracleOutcome,
    OraclePoint,
    Oracles,
    oracles_summary,
    regret,
)
from experiments.oracles.runner import PlanRunner
from experiments.oracles.search import find_oracles

__all__ = [
    "CLAIRVOYANT",
    "INSTANT",
    "Frontier",
    "OracleOutcome",
    "OraclePoint",
    "Oracles",
    "PlanRunner",
    "find_oracles",
    "oracles_summary",
    "regret",
]
