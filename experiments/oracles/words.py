"""What the oracles found, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from experiments.oracles.result import CLAIRVOYANT, INSTANT, OracleOutcome, Oracles
from experiments.readable import figure, percent


def oracle_sentences(oracles: Oracles, regrets: Mapping[str, float | None]) -> Iterator[str]:
    """One sentence per goal, and one of the policies' regrets.

    Args:
        oracles: what was found.
        regrets: policy -> GPU hours over oracle B's at the same attainment, None for none.
    """
    pairs = zip(oracles.outcomes(CLAIRVOYANT), oracles.outcomes(INSTANT), strict=True)
    for bound, free in pairs:
        yield (
            f"With the whole load known, {percent(bound.goal)} of the requests {_cost(bound)} "
            f"({CLAIRVOYANT}); if replicas also started at once, they {_cost(free)} ({INSTANT})"
        )
    known = [f"{name} {value:.2f}" for name, value in regrets.items() if value is not None]
    beyond = [name for name, value in regrets.items() if value is None]
    if known:
        yield f"Regret, GPU hours over {CLAIRVOYANT}'s at the same attainment: {', '.join(known)}"
    if beyond:
        names = ", ".join(beyond)
        yield f"No plan of {CLAIRVOYANT} serves as well or as badly as {names}: no regret"


def _cost(outcome: OracleOutcome) -> str:
    needs = f"need {figure('gpu_hours', outcome.point.gpu_hours)} GPU hours"
    if outcome.reached:
        return needs
    best = figure("slo_attainment", outcome.point.attainment)
    return f"are out of reach: at most {best}, which {needs}"
