"""What nobody can beat by much: plans made with the whole load known, judged by the simulator."""

from experiments.oracles.result import (
    Frontier,
    OracleOutcome,
    OraclePoint,
    Oracles,
    oracles_summary,
    regret,
)
from experiments.oracles.search import find_oracles

__all__ = [
    "Frontier",
    "OracleOutcome",
    "OraclePoint",
    "Oracles",
    "find_oracles",
    "oracles_summary",
    "regret",
]
