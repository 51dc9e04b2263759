"""The clairvoyant's plan: a worked example, and a search over the full state beside it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.oracle import PlanRule, Start, cheapest_plan
from policies.rule import RulePolicy
from tests.policies.test_contract import HEALTHY, KNOBS
from tests.policies.test_hpa import stacked
from tuner.core.history import History

TICK_S = 60.0
# Six ticks of a minute, a replica serves 10 requests/s, what is above is missed.
DEMAND_QPS = np.array([10, 10, 30, 30, 10, 10])
MISSES = np.maximum(DEMAND_QPS[:, None] - 10.0 * np.arange(1, 5), 0) * TICK_S
NEVER_MISS = 1e3


def cost_of(wanted, serving, misses, price, drain=0.0):
    missed = misses[np.arange(len(serving)), serving - 1].sum()
    dropped = np.maximum(-np.diff(serving), 0).sum()
    return wanted.sum() + price * missed + drain * dropped


@pytest.mark.parametrize(
    ("start", "wanted", "serving"),
    [
        pytest.param(0, [1, 1, 3, 3, 1, 1], [1, 1, 3, 3, 1, 1], id="no delay: 10 replica-ticks"),
        # Ordered one tick ahead, and paid for it: 12.
        pytest.param(1, [1, 3, 3, 3, 1, 1], [1, 1, 3, 3, 1, 1], id="cold start of a tick: 12"),
        # The first order can be made in tick 1 and would serve in tick 3: too late for tick 2,
        # whose 1200 misses nobody can prevent.
        pytest.param(2, [1, 3, 3, 3, 1, 1], [1, 1, 1, 3, 1, 1], id="cold start of two: too late"),
    ],
)
def test_a_surge_of_two_minutes(start, wanted, serving):
    plan = cheapest_plan(MISSES, Start.after(start), price=NEVER_MISS, first=1)
    assert plan.wanted.tolist() == wanted
    assert plan.serving.tolist() == serving


def test_costs_of_the_worked_example():
    """Static 3: 18 replica-ticks. The oracles: 10 and 12, regret of static 3 is 1.50. Reactive
    rules are one tick late: 10 or, with a window of two ticks before they shrink, 14, and both miss
    20/s for a minute, which the price of a missed request turns into cost."""
    instant = cheapest_plan(MISSES, Start.after(0), price=NEVER_MISS, first=1)
    bound = cheapest_plan(MISSES, Start.after(1), price=NEVER_MISS, first=1)
    assert instant.wanted.sum() == 10
    assert bound.wanted.sum() == 12
    static = np.full(6, 3)
    assert cost_of(static, static, MISSES, NEVER_MISS) / bound.wanted.sum() == 1.5
    reacting, kept = np.array([1, 1, 1, 3, 1, 1]), np.array([1, 1, 1, 3, 3, 3])
    for serving, wanted in ((reacting, [1, 1, 3, 3, 1, 1]), (kept, [1, 1, 3, 3, 3, 3])):
        held = sum(wanted)
        assert held == {1: 10, 3: 14}[serving[-1]]
        for price in (0.0, 0.001, 1.0):
            assert cost_of(np.array(wanted), serving, MISSES, price) == held + 1200 * price


def test_a_price_below_the_cost_of_serving_buys_nothing():
    """The surge needs 2 replicas for 2 ticks and 1 tick ahead: 6 replica-ticks for 2400 requests,
    and is worth it from 1/400 of a replica-tick per request on."""
    calm = cheapest_plan(MISSES, Start.after(1), price=0.99 / 400, first=1)
    keen = cheapest_plan(MISSES, Start.after(1), price=1.01 / 400, first=1)
    assert calm.wanted.tolist() == [1] * 6
    assert keen.wanted.tolist() == [1, 3, 3, 3, 1, 1]


def test_a_dip_shorter_than_a_cold_start_is_kept():
    demand = np.array([30, 30, 30, 30, 30, 10, 10, 30, 30])
    misses = np.maximum(demand[:, None] - 10.0 * np.arange(1, 5), 0)
    plan = cheapest_plan(misses, Start.after(3), price=NEVER_MISS, first=3)
    assert plan.wanted.tolist() == [3] * 9


def test_dropping_is_not_free_where_replicas_drain():
    demand = np.array([20, 20, 10, 10, 10, 20, 20])
    misses = np.maximum(demand[:, None] - 10.0 * np.arange(1, 4), 0)
    free = cheapest_plan(misses, Start.after(1), price=NEVER_MISS, first=2)
    slow = cheapest_plan(misses, Start.after(1), price=NEVER_MISS, first=2, drain=2.5)
    assert free.wanted.tolist() == [2, 2, 1, 1, 2, 2, 2]
    assert slow.wanted.tolist() == [2] * 7


def brute_force(misses, start, price, first, drain):
    """Least cost over all that a cluster can do: order, take back what starts, drop what serves."""
    ticks, most = misses.shape

    @cache
    def least(tick, serving, starting):
        """From a tick on, before anything is decided in it; `starting` counts by ticks to go."""
        if tick == ticks:
            return 0.0
        if start:
            serving, starting = serving + starting[0], (*starting[1:], 0)
        best = np.inf
        for ordered in range(most + 1 - serving - sum(starting) if tick else 1):
            for back in range(sum(starting) + 1 if tick else 1):
                for dropped in range(serving if tick else 1):
                    now, left, rest = list(starting), serving - dropped, back
                    for place in range(len(now)):
                        taken = min(rest, now[place])
                        now[place] -= taken
                        rest -= taken
                    if start:
                        now[-1] += ordered
                    else:
                        left += ordered
                    if not 1 <= left <= most:
                        continue
                    cost = left + sum(now) + price * misses[tick, left - 1] + drain * dropped
                    best = min(best, cost + least(tick + 1, left, tuple(now)))
        return best

    return least(0, first, (0,) * start)


@given(
    data=st.data(),
    start=st.integers(0, 3),
    price=st.sampled_from([0.1, 0.5, 1.0, 4.0]),
    drain=st.sampled_from([0.0, 0.5, 2.0]),
)
@settings(max_examples=60, deadline=None)
def test_is_as_cheap_as_a_search_over_the_full_state(data, start, price, drain):
    ticks, most = data.draw(st.integers(2, 6)), 3
    needs = data.draw(st.lists(st.integers(0, 12), min_size=ticks, max_size=ticks))
    served = data.draw(st.lists(st.integers(1, 5), min_size=most, max_size=most))
    misses = np.maximum(np.array(needs)[:, None] - np.cumsum(served), 0).astype(float)
    first = data.draw(st.integers(1, most))
    plan = cheapest_plan(misses, Start.after(start), price=price, first=first, drain=drain)
    # The cost of the settings as a cluster carries them out: a dip that is filled is no drop.
    found = cost_of(plan.wanted, serving_of(plan.wanted, start), misses, price, drain)
    assert found == pytest.approx(brute_force(misses, start, price, first, drain), abs=1e-9)


def serving_of(wanted, start):
    """Replicas that serve under these settings, by hand: the least that was wanted in all of the
    last `start` ticks is there."""
    return np.array([wanted[max(0, tick - start) : tick + 1].min() for tick in range(len(wanted))])


def test_a_start_of_random_length_is_ordered_for_what_its_lateness_costs():
    """8 or 12 ticks, one as likely as the other. What is late is so by 4 ticks in every second
    case, which costs twice the misses of a tick in the mean; to be sure costs 4 replica-ticks. It
    is worth it from 2 misses x price per tick on."""
    misses = np.zeros((60, 2))
    misses[30:50, 0] = 10.0
    start = Start(8, np.full(4, 0.5))
    for price, ahead in ((0.19, 8), (0.21, 12)):
        plan = cheapest_plan(misses, start, price=price, first=1)
        assert np.flatnonzero(plan.wanted == 2).tolist() == list(range(30 - ahead, 50))


@pytest.mark.parametrize(
    ("misses", "first", "sentence"),
    [
        ([[1.0, 0.0]], 3, "first is 3; expected 1 to 2"),
        ([[0.0, 1.0]], 1, "misses rise with the count"),
    ],
)
def test_refuses_a_table_that_cannot_be(misses, first, sentence):
    with pytest.raises(ValueError, match=sentence):
        cheapest_plan(np.array(misses), Start.after(1), price=1.0, first=first)


def test_the_rule_reads_the_clock_and_nothing_else():
    rule = PlanRule(np.array([3, 5, 4]), tick_s=15.0)
    seen = [replace(HEALTHY, at_s=at_s) for at_s in (0.0, 14.9, 15.0, 15.0 - 1e-9, 30.0, 900.0)]
    result = rule.decide(stacked(seen), np.empty((6, 0)))
    column = KNOBS.column("replicas")
    assert result.settings[:, column].tolist() == [3, 3, 5, 5, 4, 4]
    assert np.isnan(np.delete(result.settings, column, axis=1)).all()
    proposal = RulePolicy("oracle", rule).propose(History(KNOBS).observed(HEALTHY))
    assert proposal.settings == {"replicas": 4.0}
    assert proposal.why == "planned with the whole load known: 4 replicas now"
