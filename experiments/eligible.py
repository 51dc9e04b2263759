"""Who may be called the best: policies that anyone could have run without knowing the load."""

from __future__ import annotations

from experiments.comparison import Comparison, PolicyOutcome
from experiments.oracles import CLAIRVOYANT, INSTANT
from experiments.workbench import STATIC

BOUNDS = (INSTANT, CLAIRVOYANT)
"""Not policies that anyone could run."""


def eligible(comparison: Comparison, outcome: PolicyOutcome) -> bool:
    """Whether a policy may win: no oracle, and not alone in having been shown the load."""
    return outcome.name not in BOUNDS and not in_hindsight(comparison, outcome)


def in_hindsight(comparison: Comparison, outcome: PolicyOutcome) -> bool:
    """Whether this is static with the count that is best on the compared load, beside rules that
    were tuned on another one. Where all were tuned on the compared load, nobody stands out."""
    tuning = comparison.tuning
    elsewhere = not tuning.hindsight or any(not s.hindsight for s in tuning.searches.values())
    curve = tuning.curves.get(STATIC)
    return (
        elsewhere
        and outcome.name == STATIC
        and curve is not None
        # A count that the user gave takes the place of the one that was found.
        and outcome.options.get("replicas") == curve.chosen.value
    )
