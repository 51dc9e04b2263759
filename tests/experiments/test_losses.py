import pytest

from experiments.losses import worst
from experiments.result import TickTable
from tuner.core.slo import Slo

SLO = Slo(ttft_s=2.5, tpot_s=0.075)
TICK_S = 15.0
QUIET = {
    **{name: None for name in ("gpu_util", "ttft_p50_s", "ttft_p95_s", "tpot_p50_s")},
    **{"window_s": 60.0, "qps": 10.0, "prompt_tokens_per_s": 8000.0, "output_tokens_per_s": 2e4},
    **{"ttft_p99_s": 1.0, "tpot_p99_s": 0.05, "queue_depth": 0.0, "running": 100.0},
    **{"kv_cache_usage": 0.5, "wanted_replicas": 8.0, "ready_replicas": 8.0},
    **{"starting_replicas": 0.0, "draining_replicas": 0.0, "batch_size": 64.0, "threads": 4.0},
    **{"warmup_requests": 0.0, "met": 150, "missed": 0, "finished": 150, "source": "policy"},
    **{"clamped": False, "tripped": False, "sentence": "no change (policy): steady"},
}


def hours(count=4):
    """Quiet ticks, as rows to change."""
    return [{**QUIET, "at_s": (place + 1) * TICK_S} for place in range(int(count * 240))]


def change(rows, from_s, to_s, **changed):
    for row in rows:
        if from_s < row["at_s"] <= to_s:
            row.update(changed)


def found(rows, most=32):
    return worst("mine", TickTable.of(rows), SLO, most)


def test_a_surge_that_outruns_a_cold_start_is_told_as_one():
    rows = hours()
    change(rows, 3600, 3660, qps=12.0)
    change(rows, 3660, 3720, qps=15.0)
    change(rows, 3720, 5400, qps=20.0)
    change(rows, 3735, 4500, wanted_replicas=11.0, starting_replicas=3.0)
    change(rows, 4140, 14400, ready_replicas=11.0, starting_replicas=0.0, wanted_replicas=11.0)
    change(rows, 3735, 3735, sentence="")
    rows[249]["sentence"] = "replicas 8 -> 11 (policy): 20 requests/s"
    change(rows, 3750, 4140, missed=30, queue_depth=512.0, ttft_p99_s=9.5)
    loss = found(rows)
    assert loss.missed == 26 * 30
    assert loss.share == 1
    assert loss.from_s <= 3750
    assert loss.to_s >= 4140
    assert loss.to_s - loss.from_s == 600
    assert "Load rose from 10 to 20 requests/s in" in loss.why
    assert "8 replicas were ready, 3 starting, the first of which was ready" in loss.why
    assert "up to 512 requests waited" in loss.why
    assert "TTFT p99 reached 9.5 s (objective 2.5 s)" in loss.why
    assert "TPOT" not in loss.why
    assert loss.decisions == (("1:02:30", "replicas 8 -> 11 (policy): 20 requests/s"),)


def test_how_long_the_first_replica_took_is_counted_from_the_beginning_of_those_minutes():
    rows = hours()
    change(rows, 3600, 3600 + 900, missed=10, starting_replicas=2.0, wanted_replicas=10.0)
    change(rows, 3600 + 420, 14400, ready_replicas=9.0)
    loss = found(rows)
    assert loss.from_s == 3600
    # the tick at 3615 is the first of the window, the one at 4035 the first with nine
    assert "2 starting, the first of which was ready 7 min later" in loss.why


def test_replicas_that_never_came_are_told_so():
    rows = hours()
    change(rows, 3600, 4200, missed=1, starting_replicas=1.0, wanted_replicas=9.0)
    assert "1 starting, none of which came to serve" in found(rows).why


def test_a_policy_that_asked_for_nothing_is_told_so_in_its_own_words():
    rows = hours()
    change(rows, 7200, 7800, missed=7)
    loss = found(rows)
    assert (loss.from_s, loss.to_s) == (7200, 7800)
    assert loss.why == "The load had not risen; 8 replicas were ready, and no more were asked for."
    assert loss.decisions == (("2:00:15", "no change (policy): steady"),)


def test_the_decision_behind_those_that_started_is_quoted():
    rows = hours()
    change(rows, 3600, 4200, missed=1, starting_replicas=30.0, wanted_replicas=9.0)
    change(rows, 4000, 4200, wanted_replicas=38.0)
    for row in rows:
        if 3600 < row["at_s"] <= 4200:
            row["sentence"] = f"replicas to {row['wanted_replicas']:.0f} (policy)"
    loss = found(rows)
    assert "30 starting" in loss.why
    assert any("replicas to 38" in sentence for _, sentence in loss.decisions)
    assert len(loss.decisions) <= 3


def test_replicas_given_up_before_are_named():
    rows = hours()
    change(rows, 0, 3300, ready_replicas=12.0)
    change(rows, 3600, 4200, missed=7)
    assert "8 replicas were ready, down from 12 in the 15 min before" in found(rows).why


def test_prompts_are_named_where_they_rose_and_requests_did_not():
    rows = hours()
    change(rows, 3600, 4200, missed=7, prompt_tokens_per_s=24000.0)
    assert "Load rose from 8,000 to 24,000 prompt tokens/s in" in found(rows).why


def test_the_bound_the_cache_and_the_fallback_are_named():
    rows = hours()
    change(rows, 3600, 4200, missed=7, kv_cache_usage=0.99, tripped=True, tpot_p99_s=0.2)
    why = found(rows, most=8).why
    assert "(run.max_replicas allows 8)" in why
    assert "the KV cache was 99 % full" in why
    assert "a guardrail handed over to the fallback in 40 ticks" in why
    assert "TPOT p99 reached 200 ms (objective 75 ms)" in why


def test_the_worst_of_two_spells_is_taken_and_its_share_said():
    rows = hours()
    change(rows, 3600, 3900, missed=10)
    change(rows, 9000, 9300, missed=30)
    loss = found(rows)
    assert loss.missed == 20 * 30
    assert loss.share == pytest.approx(0.75)
    assert loss.from_s <= 9000 < 9300 <= loss.to_s


@pytest.mark.parametrize("missing", ["qps", "prompt_tokens_per_s", "queue_depth", "ttft_p99_s"])
def test_what_was_not_measured_is_not_told(missing):
    rows = hours(2)
    change(rows, 0, 7200, **{missing: None})
    change(rows, 3600, 4200, missed=7)
    assert "nan" not in found(rows).why


def test_nothing_measured_at_all_still_gives_a_sentence():
    rows = [
        {**row, **{name: None for name, value in row.items() if isinstance(value, float)}}
        for row in hours(1)
    ]
    for place, row in enumerate(rows):
        row.update(at_s=(place + 1) * TICK_S, missed=1)
    assert found(rows).why == (
        "The load was not measured; how many replicas were ready was not measured."
    )


def test_a_run_shorter_than_the_window_is_its_own_worst():
    rows = hours(0.1)
    change(rows, 0, 360, missed=2)
    loss = found(rows)
    assert (loss.from_s, loss.to_s) == (0, 360)
    assert loss.missed == 48


def test_a_long_decision_is_cut():
    rows = hours(1)
    change(rows, 600, 1200, missed=1, sentence=f"replicas 8 -> 9 (policy): {'why ' * 200}")
    assert all(len(sentence) <= 180 for _, sentence in found(rows).decisions)
