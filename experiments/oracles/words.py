"""What the oracles found, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from experiments.oracles.result import CLAIRVOYANT, INSTANT, OracleOutcome, Oracles
from experiments.readable import figure, percent, signed_percent

REGRET_MEANING = f"GPU hours over those of {CLAIRVOYANT} at the attainment of the policy itself"
"""What is called regret, on terminal and page alike."""


def oracle_sentences(oracles: Oracles, regrets: Mapping[str, float | None]) -> Iterator[str]:
    """One sentence per goal, and one of the policies' regrets.

    Args:
        oracles: what was found.
        regrets: policy -> see `experiments.oracles.regret`.
    """
    pairs = zip(oracles.outcomes(CLAIRVOYANT), oracles.outcomes(INSTANT), strict=True)
    for bound, free in pairs:
        yield (
            f"With the whole load known, {percent(bound.goal)} of the requests {_cost(bound)} "
            f"({CLAIRVOYANT}); if replicas also started at once, they {_cost(free)} ({INSTANT})"
        )
    known = [f"{n} {signed_percent(v - 1)}" for n, v in regrets.items() if v is not None]
    beyond = [name for name, value in regrets.items() if value is None]
    if known:
        yield f"Regret, {REGRET_MEANING}: {', '.join(known)}"
    if beyond:
        names = ", ".join(beyond)
        yield f"No plan of {CLAIRVOYANT} serves as well or as badly as {names}: no regret"


def _cost(outcome: OracleOutcome) -> str:
    needs = f"need {figure('gpu_hours', outcome.point.gpu_hours)} GPU hours"
    if outcome.reached:
        return needs
    best = figure("slo_attainment", outcome.point.attainment)
    return f"are out of reach: at most {best}, which {needs}"
