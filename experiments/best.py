"""Who is best: the verdict of a whole comparison in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.comparison import Comparison, Estimate, PolicyOutcome
from experiments.curve import sweep_cost_at
from experiments.eligible import BOUNDS, eligible, in_hindsight
from experiments.equal_attainment import curve_of
from experiments.money import price_of, usd
from experiments.oracles import CLAIRVOYANT
from experiments.readable import MINUS, figure, interval, listed, percent
from experiments.statistics import seeds_interval
from experiments.verdict import EVEN_COST


@dataclass(frozen=True)
class Lead:
    """The verdict."""

    policy: str
    """The best one."""
    sentence: str
    """Who is best, what that saves against the baseline, how well it serves, and how sure it is."""
    details: tuple[str, ...]
    """Who comes next, how far it is to the bound, and how far it carries."""


def ranked(comparison: Comparison) -> list[PolicyOutcome]:
    """The best first: who reaches the goal by cost, then the rest by attainment; last what was
    chosen with hindsight, and the bounds. Of equals the baseline stands first: nothing beats it by
    doing the same."""
    goal = comparison.config.sweep.goal

    def place(outcome: PolicyOutcome) -> tuple[bool, bool, bool, float, float, bool]:
        served, cost = outcome.mean("slo_attainment"), outcome.mean("gpu_hours")
        reached = served >= goal
        order = (cost, -served) if reached else (-served, cost)
        return (
            outcome.name in BOUNDS,
            not eligible(comparison, outcome),
            not reached,
            *order,
            outcome.name != comparison.baseline,
        )

    return sorted(comparison.policies, key=place)


def below_goal(comparison: Comparison) -> list[str]:
    """Policies that miss the goal, in the comparison's order."""
    goal = comparison.config.sweep.goal
    return [o.name for o in comparison.policies if o.mean("slo_attainment") < goal]


def lead(comparison: Comparison) -> Lead | None:
    """The verdict; None where only one policy could be run."""
    order = [outcome for outcome in ranked(comparison) if eligible(comparison, outcome)]
    known = [outcome for outcome in comparison.policies if in_hindsight(comparison, outcome)]
    if not order or len(order) + len(known) < 2:
        return None
    first, base = order[0], comparison[comparison.baseline]
    return Lead(
        policy=first.name,
        sentence=_sentence(comparison, order, base),
        details=(
            *_next(comparison, order),
            *(_with_hindsight(first, outcome) for outcome in known if outcome is not base),
            *_other_loads(first, base),
            *_to_the_bound(comparison, first),
            *_luck(order, first, base),
        ),
    )


def _sentence(comparison: Comparison, order: Sequence[PolicyOutcome], base: PolicyOutcome) -> str:
    first, goal = order[0], comparison.config.sweep.goal
    if _all_the_same(order):
        return _tie(order, goal)
    served = _with_interval("slo_attainment", first.estimates["slo_attainment"])
    if first.mean("slo_attainment") < goal:
        none = "Neither" if len(order) == 2 else f"None of {len(order)}"
        opening = (
            f"{none} reaches the goal of {percent(goal)}; {first.name} comes closest with {served}"
        )
    elif first is base:
        return (
            f"{base.name}, the baseline, is not beaten: it reaches the goal of {percent(goal)} at "
            f"the least cost, serving {served} of the requests within the objectives for "
            f"{_with_interval('gpu_hours', base.estimates['gpu_hours'])} GPU hours."
        )
    else:
        best = (
            f"is the best of {len(order)}: it"
            if len(order) > 1
            else "is the only one that was not chosen with hindsight: it"
        )
        opening = f"{first.name} {best} serves {served} of the requests within the objectives"
    if first is base:
        return f"{opening}; it is the baseline."
    sentence = f"{opening} for {_against(first, base)}"
    price, gap = price_of(comparison), first.differences["gpu_hours"]
    if price is not None and _clear(gap):
        word = "less" if gap.mean < 0 else "more"
        sentence += f", {usd(abs(gap.mean) * price.usd)} {word} for this load"
    theirs = base.mean("slo_attainment")
    missed = ""
    if theirs < goal <= first.mean("slo_attainment"):
        missed = f", which misses the goal{_set_to_the_goal(comparison, first, base)}"
    return f"{sentence}; {base.name} serves {figure('slo_attainment', theirs)}{missed}."


def _set_to_the_goal(comparison: Comparison, first: PolicyOutcome, base: PolicyOutcome) -> str:
    """What the baseline would cost if it reached the goal too, where its curve tells."""
    goal, curve = comparison.config.sweep.goal, curve_of(comparison, base.name)
    if curve is None:
        return ""
    needed = sweep_cost_at(curve, goal)
    if needed is None:
        return f"; no setting of {base.name} that was tried reaches it"
    more = first.mean("gpu_hours") / needed - 1
    compared = f"{percent(abs(more))} {'more' if more > 0 else 'less'}"
    if abs(more) < EVEN_COST:
        compared = "about the same"
    return (
        f"; set to the goal, {base.name} needs about {figure('gpu_hours', needed)} GPU hours: "
        f"{first.name} costs {compared}"
    )


def _against(first: PolicyOutcome, base: PolicyOutcome) -> str:
    """Cost against the baseline's, in percent of it, with the interval over the seeds."""
    gap, cost = first.differences["gpu_hours"], base.mean("gpu_hours")
    if _same_cost(first, base):
        return f"the same GPU hours as {base.name}"
    share = gap.mean / cost
    word = "fewer" if share < 0 else "more"
    sign = -1 if share < 0 else 1
    if gap.ci95 is None:
        sure = "one seed, no interval"
    else:
        low, high = sorted(sign * bound / cost for bound in gap.ci95)
        sure = f"95 % interval {_bounds(low, high)}"
        if not _clear(gap):
            sure += ", so not clearly different"
    return f"{percent(abs(share))} {word} GPU hours than {base.name} ({sure})"


def _next(comparison: Comparison, order: Sequence[PolicyOutcome]) -> list[str]:
    """The runner-up: what choosing it instead would cost, seed by seed."""
    goal = comparison.config.sweep.goal
    if len(order) < 2 or _all_the_same(order):
        return []
    first, second = order[0], order[1]
    if second.mean("slo_attainment") < goal <= first.mean("slo_attainment"):
        return ["No other policy reaches the goal."]
    if first.mean("slo_attainment") < goal:
        return []
    if _same_cost(first, second):
        return [f"{second.name} is next at the same cost."]
    cost = first.mean("gpu_hours")
    shares = [
        (theirs.figures.gpu_hours - ours.figures.gpu_hours) / cost
        for ours, theirs in zip(first.runs, second.runs, strict=True)
    ]
    mean, bounds = sum(shares) / len(shares), seeds_interval(shares)
    if bounds is None:
        return [f"Next is {second.name}: {percent(mean)} more GPU hours."]
    apart = f"{percent(mean)} more GPU hours (95 % interval {_bounds(*bounds)})"
    if bounds[0] <= 0 or mean < EVEN_COST:
        return [f"{second.name} is next and cannot be told apart in cost: {apart}."]
    return [f"Next is {second.name}: {apart}."]


def _with_hindsight(first: PolicyOutcome, known: PolicyOutcome) -> str:
    """What the fixed fleet that was chosen on the very load does: a bound on fixed fleets."""
    cost, mine = known.mean("gpu_hours"), first.mean("gpu_hours")
    share = cost / mine - 1 if mine > 0 else 0.0
    if abs(share) < EVEN_COST:
        costs = "about as many GPU hours"
    else:
        costs = f"{percent(abs(share))} {'more' if share > 0 else 'fewer'} GPU hours"
    return (
        f"{known.name}, chosen with hindsight on this very load, serves "
        f"{figure('slo_attainment', known.mean('slo_attainment'))} for {costs}: a bound, no rival."
    )


def _other_loads(first: PolicyOutcome, base: PolicyOutcome) -> list[str]:
    gap, cost = first.differences.get("gpu_hours"), base.mean("gpu_hours")
    if gap is None or gap.ci95_load is None or cost <= 0:
        return []
    low, high = (bound / cost for bound in gap.ci95_load)
    return [
        f"Over loads like this one its GPU hours are {_bounds(low, high, signed=True)} against "
        f"those of {base.name} (95 % interval)."
    ]


def _to_the_bound(comparison: Comparison, first: PolicyOutcome) -> list[str]:
    """How much of the cost a perfect forecast could save."""
    regret = comparison.regret(first)
    if regret is None:
        return []
    bound = (
        f"{CLAIRVOYANT}, which knows the load in advance and starts replicas as slowly as everyone"
    )
    served = figure("slo_attainment", first.mean("slo_attainment"))
    if regret - 1 < EVEN_COST:
        return [f"Serving {served} costs {bound}, no less: nothing is left to gain."]
    return [
        f"For the {served} that it serves it needs {percent(regret - 1)} more GPU hours than "
        f"{bound}: that much is left to gain."
    ]


def _luck(order: Sequence[PolicyOutcome], first: PolicyOutcome, base: PolicyOutcome) -> list[str]:
    if len(order) < 4 or first is base or _all_the_same(order):
        return []
    return [
        f"The best of {len(order)} was picked on the load that it is judged on, which flatters it: "
        "before acting on it, compare it with the baseline alone on another day."
    ]


def _all_the_same(order: Sequence[PolicyOutcome]) -> bool:
    """Whether every policy served as many and held as many GPUs on every seed."""
    found = {
        tuple((run.figures.slo_attainment, run.figures.gpu_hours) for run in outcome.runs)
        for outcome in order
    }
    return len(order) > 1 and len(found) == 1


def _tie(order: Sequence[PolicyOutcome], goal: float) -> str:
    served = _with_interval("slo_attainment", order[0].estimates["slo_attainment"])
    cost = _with_interval("gpu_hours", order[0].estimates["gpu_hours"])
    missed = ", short of the goal" if order[0].mean("slo_attainment") < goal else ""
    return (
        f"There is no difference between {listed([outcome.name for outcome in order])}: on every "
        f"seed each serves the same, {served} of the requests within the objectives{missed}, for "
        f"the same {cost} GPU hours."
    )


def _same_cost(one: PolicyOutcome, other: PolicyOutcome) -> bool:
    """Whether both held as many GPUs on every seed: an interval of 0 to 0 % says nothing."""
    pairs = zip(one.runs, other.runs, strict=True)
    return all(ours.figures.gpu_hours == theirs.figures.gpu_hours for ours, theirs in pairs)


def _clear(gap: Estimate) -> bool:
    return gap.ci95 is not None and not gap.ci95[0] <= 0 <= gap.ci95[1]


def _with_interval(metric: str, estimate: Estimate) -> str:
    text = figure(metric, estimate.mean)
    if estimate.ci95 is None:
        return text
    return f"{text} ({interval(metric, estimate.ci95, estimate.mean)})"


def _bounds(low: float, high: float, *, signed: bool = False) -> str:
    texts = [percent(bound).removesuffix(" %") for bound in (low, high)]
    if signed:
        texts = [text if text.startswith(MINUS) else f"+{text}" for text in texts]
    return f"{texts[0]} to {texts[1]} %"
