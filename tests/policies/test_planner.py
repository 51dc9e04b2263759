"""The planner's counts, worked by hand, and how it behaves over a ramp, a jump and a fall."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from policies import build_policy, empty_memory
from policies.planner import PlannerRule
from tests.policies.test_hpa import stacked
from tuner.core.errors import ConfigError
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation
from tuner.core.profile import (
    EngineLimits,
    KvCache,
    ServingProfile,
    Stage,
    Stages,
    Startup,
    StepTime,
)
from tuner.core.slo import Slo
from tuner.data.profiles import write_profile
from tuner.knobs import knob_space

KNOBS = knob_space(replicas=(1, 100))
TICK_S = 15.0
PROFILE = ServingProfile(
    schema="tuner.profile/1",
    name="by-hand",
    scheduler="vidur-sarathi",
    gpus_per_replica=1,
    kv=KvCache(block_tokens=10, blocks=10_000),
    limits=EngineLimits(batch_size_max=100, chunk_tokens=1000),
    step_time=StepTime(base_s=0.020),
    startup=Startup(stages=Stages(weights=Stage(median_s=300.0), compile=Stage(median_s=165.0))),
)
"""85 sequences of steps of 20 ms: 4,250 output tokens/s, whatever the prompts."""
SLO = Slo(ttft_s=1e3, tpot_s=1e3)
PLAIN = {"headroom": 1.0, "hold_s": 0.0, "trend": 0.0}


def rule(**options: float | str) -> PlannerRule:
    built = build_policy(
        "planner", {**PLAIN, **options}, KNOBS, tick_s=TICK_S, profile=PROFILE, slo=SLO
    ).rule
    assert isinstance(built, PlannerRule)
    return built


def seen(tokens: float = 42_500.0, n: int | None = 10, **fields: float | None) -> Observation:
    """A fleet that generates so many tokens/s in answers of 100 to prompts of 100."""
    settings = KnobSettings() if n is None else KnobSettings(replicas=n, batch_size=100)
    rates = dict.fromkeys(("prompt_tokens_per_s", "output_tokens_per_s"), tokens)
    measured = {"qps": tokens / 100, **rates, **fields}
    return Observation(at_s=0.0, window_s=TICK_S, settings=settings, **measured)


def counts(planner: PlannerRule, run: list[Observation]) -> list[float]:
    """What is wanted at each of these looks, a tick apart."""
    memory, wanted = empty_memory(planner, 1), []
    for tick, one in enumerate(run):
        result = planner.decide(stacked([replace(one, at_s=TICK_S * tick)]), memory)
        memory = result.memory
        wanted.append(float(result.settings[0, KNOBS.column("replicas")]))
    return wanted


NO_MOVE = float("nan")
ROWS = {
    # 42,500 tokens/s over 4,250 a replica.
    "what the rates need": ({}, seen(), 10),
    "rounded up": ({}, seen(42_501.0), 11),
    "times headroom": ({"headroom": 1.25}, seen(), 13),
    "headroom below 1": ({"headroom": 0.8}, seen(), 8),
    "no load needs one": ({}, seen(0.0), 1),
    "no more than there may be": ({}, seen(1e6), 100),
    # The knob allows 40 sequences: 34 of them, 1,700 tokens/s.
    "the batch size in force": (
        {},
        replace(seen(), settings=KnobSettings(replicas=10, batch_size=40)),
        25,
    ),
    # 100,000 tokens of cache on each of 10, a quarter in use by 100 requests: 2,500 each. So 34
    # fit, not 85.
    "what sequences hold": (
        {},
        seen(kv_cache_usage=0.25, ready_replicas=10.0, running=100.0),
        25,
    ),
    "sequences that hold nothing yet": (
        {},
        seen(kv_cache_usage=0.0, ready_replicas=10.0, running=100.0),
        10,
    ),
    # 1,700 wait or run, and 85 fit: a naive planner would say 10.
    "a backlog": ({}, seen(queue_depth=1000.0, running=700.0), 20),
    "a backlog needs no headroom": (
        {"headroom": 1.25},
        seen(queue_depth=1000.0, running=700.0),
        20,
    ),
    "a small backlog": ({}, seen(queue_depth=5.0, running=700.0), 10),
    "many run and none waits": ({}, seen(queue_depth=0.0, running=1700.0), 10),
    "no word of those that run": ({}, seen(queue_depth=1000.0), 10),
    "no output rate": ({}, seen(output_tokens_per_s=None), NO_MOVE),
    "no arrivals told": ({}, seen(qps=None), NO_MOVE),
    "no prompt rate": ({}, seen(prompt_tokens_per_s=None), NO_MOVE),
    "a rate that is no number": ({}, seen(qps=float("inf")), NO_MOVE),
    "replicas in force not known": ({}, seen(n=None), 10),
}


@pytest.mark.parametrize(("options", "now", "wanted"), ROWS.values(), ids=ROWS)
def test_the_count(options, now, wanted):
    assert counts(rule(**options), [now]) == pytest.approx([wanted], nan_ok=True)


def ramp(start: float, per_s: float, until_s: float) -> list[Observation]:
    return [seen(start + per_s * tick * TICK_S) for tick in range(int(until_s / TICK_S) + 1)]


def test_a_ramp_is_met_one_cold_start_ahead():
    # A start takes 465 s and is decided on every 15 s: 480 s. One replica more every 120 s, so
    # 4 replicas more than the load now needs; a reactive rule would ask for them as it needs them.
    rising = ramp(42_500.0, 4250 / 120, 7200.0)
    now_needed = 10 + 7200 / 120
    [*_, ahead] = counts(rule(trend=1.0), rising)
    assert ahead == now_needed + 4
    # The level alone is a minute behind.
    [*_, reactive] = counts(rule(), rising)
    assert now_needed - 1 <= reactive <= now_needed
    [*_, far] = counts(rule(trend=1.0, horizon_s=960.0), rising)
    assert far == now_needed + 8


def test_a_noisy_flat_load_settles():
    draw = np.random.default_rng(0)
    noisy = [seen(float(40_000 * draw.normal(1.0, 0.05))) for _ in range(480)]
    settled = counts(rule(headroom=1.1, trend=0.5, hold_s=1200.0), noisy)[120:]
    # 40,000 / 4,250 x 1.1 = 10.35
    assert set(settled) <= {11.0, 12.0}
    assert sum(a != b for a, b in pairwise(settled)) <= 8


def test_it_goes_down_when_the_window_is_over_and_up_at_once():
    run = [seen()] * 5 + [seen(4250.0)] * 100 + [seen()] * 40
    wanted = counts(rule(hold_s=600.0), run)
    # The last 10 is asked for at tick 4, or a little later: the level falls within minutes.
    falls = wanted.index(min(wanted))
    first_below = next(i for i, count in enumerate(wanted) if count < 10)
    assert 4 + 600 / TICK_S <= first_below <= 10 + 600 / TICK_S
    assert min(wanted) <= 2
    assert falls < 105
    # Up again as the level rises: half way within a minute, all of it within five.
    assert wanted[105 + 4] >= 6
    assert wanted[105 + 20] == 10


def test_a_backlog_is_caught_up_with_and_then_let_go():
    waiting = seen(queue_depth=1000.0, running=700.0)
    wanted = counts(rule(hold_s=300.0), [seen()] * 4 + [waiting] * 4 + [seen()] * 40)
    assert wanted[3] == 10
    assert wanted[4] == 20
    assert wanted[7 + 19] == 20
    assert wanted[7 + 21] == 10


def test_answers_under_way_are_a_load_when_no_one_asks_any_more():
    quiet = seen(qps=0.0, prompt_tokens_per_s=0.0)
    assert counts(rule(), [seen()] * 20 + [quiet] * 20)[20:] == [10.0] * 20


def test_what_is_in_force_at_the_beginning_stays_for_a_window():
    # A controller that starts beside a fleet of 10, and a load of which it sees little at first.
    wanted = counts(rule(hold_s=300.0), [seen(4250.0)] * 40)
    assert wanted[:20] == [10.0] * 20
    assert wanted[20:] == [1.0] * 20


def test_a_look_without_rates_moves_nothing_and_forgets_nothing():
    blind = seen(output_tokens_per_s=None)
    wanted = counts(rule(hold_s=600.0), [seen()] * 10 + [blind] * 10 + [seen(41_000.0)])
    assert np.isnan(wanted[10:20]).all()
    assert wanted[20] == 10


def why(planner: PlannerRule, *run: Observation) -> str:
    memory = empty_memory(planner, 1)
    for tick, one in enumerate(run):
        result = planner.decide(stacked([replace(one, at_s=TICK_S * tick)]), memory)
        memory = result.memory
    return result.why(0)


FORECAST = "in 480 s 425 requests/s of 100 prompt and 100 output tokens, 42.5 to a replica"


@pytest.mark.parametrize(
    ("options", "run", "words"),
    [
        ({"headroom": 1.25}, [seen()], f"{FORECAST}, is 10 x 1.25 headroom: 13"),
        (
            {},
            [seen(queue_depth=1000.0, running=700.0)],
            "1,700 requests wait or run, room for 85 on a replica: 20",
        ),
        (
            {"hold_s": 600},
            [seen(queue_depth=1000.0, running=700.0), seen()],
            f"{FORECAST}, is 10 x 1 headroom: 10, held at 20 by the window of 600 s",
        ),
        ({"headroom": 11}, [seen()], f"{FORECAST}, is 10 x 11 headroom: 110, at most 100 allowed"),
        ({}, [seen(qps=None, output_tokens_per_s=None)], "no value for qps, output_tokens_per_s"),
    ],
    ids=["headroom", "backlog", "held", "bound", "blind"],
)
def test_it_says_what_it_worked_with(options, run, words):
    assert why(rule(**options), *run) == words


def test_no_load_has_its_words():
    assert why(rule(), seen(0.0)) == (
        "in 480 s 0 requests/s of 1 prompt and 1 output tokens, 4,250 to a replica, "
        "is 0 x 1 headroom: 0, at least 1 allowed"
    )


def test_a_live_target_names_its_profile(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    write_profile(PROFILE, file)
    options = {**PLAIN, "profile": str(file)}
    live = build_policy("planner", options, KNOBS, tick_s=TICK_S, slo=SLO)
    assert live.propose(History(KNOBS).observed(seen())).settings["replicas"] == 10
    with pytest.raises(ConfigError, match=r"planner: it needs to know how fast .* option profile"):
        build_policy("planner", {}, KNOBS, tick_s=TICK_S)


def test_a_profile_without_a_start_looks_one_tick_ahead():
    at_once = replace(PROFILE, startup=None)
    built = build_policy("planner", {}, KNOBS, tick_s=TICK_S, profile=at_once).rule
    assert built.forecast.horizon_s == TICK_S
