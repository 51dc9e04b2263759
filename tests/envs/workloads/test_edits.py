"""Traces made of traces: what stays, what changes, and by how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.workloads.edits import (
    DAY_S,
    cut,
    length_s,
    overlaid,
    phase_shifted,
    spliced,
    thinned,
    with_bursts,
    with_lengths,
)
from tuner.core.errors import ConfigError
from tuner.core.trace import Gap, Trace


def trace(n: int = 20_000, span_s: float = DAY_S, seed: int = 0, name: str = "t") -> Trace:
    """Uniform arrivals, every column there is, each request told apart by its lengths."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(1, 4000, n, dtype=np.int32)
    return Trace(
        np.sort(rng.uniform(0, span_s, n)),
        prompt,
        rng.integers(1, 4000, n, dtype=np.int32),
        prefix_hit_tokens=prompt // 2,
        client_id=rng.integers(0, 4, n, dtype=np.int32),
        name=name,
        header={"origin": "made up"},
    )


def assert_same_requests(one: Trace, other: Trace) -> None:
    for name, column in one.columns().items():
        if name != "arrival_s":
            np.testing.assert_array_equal(column, other.columns()[name])


def counts(made: Trace, window_s: float) -> np.ndarray:
    return np.bincount((made.arrival_s // window_s).astype(int))


@pytest.mark.parametrize("shift_s", [3 * 3600.0, 0.5, 23.9 * 3600], ids=str)
def test_a_phase_shift_is_a_rotation(shift_s):
    given = replace(trace(), gaps=(Gap(70_000.0, 71_000.0),))
    moved = phase_shifted(given, shift_s)
    expected = np.sort((given.arrival_s + shift_s) % DAY_S)
    np.testing.assert_allclose(moved.arrival_s, expected, rtol=0, atol=1e-9)
    back = phase_shifted(moved, DAY_S - shift_s)
    np.testing.assert_allclose(back.arrival_s, given.arrival_s, rtol=0, atol=1e-9)
    assert_same_requests(back, given)
    assert sum(gap.length_s for gap in moved.gaps) == pytest.approx(1000.0)
    assert (back.gaps[0].start_s, back.gaps[0].end_s) == pytest.approx((70_000.0, 71_000.0))


def test_a_phase_shift_of_days_keeps_the_days_in_their_order():
    given = trace(span_s=2 * DAY_S)
    moved = phase_shifted(given, 6 * 3600.0)
    late = given.arrival_s >= 2 * DAY_S - 6 * 3600
    np.testing.assert_array_equal(moved.prompt_tokens[: late.sum()], given.prompt_tokens[late])


def test_what_a_recording_lacks_of_the_day_moves_along_as_a_gap():
    moved = phase_shifted(trace(span_s=16 * 3600.0), 12 * 3600.0)
    (gap,) = moved.gaps
    assert gap.start_s == pytest.approx(4 * 3600, abs=30)
    assert gap.end_s == 12 * 3600
    assert not ((moved.arrival_s > gap.start_s) & (moved.arrival_s < gap.end_s)).any()


def test_a_gap_that_a_shift_cuts_in_two_is_at_both_ends():
    given = replace(trace(), gaps=(Gap(40_000.0, 50_000.0),))
    shift_s = DAY_S - 45_000.0
    assert phase_shifted(given, shift_s).gaps == (
        Gap(0.0, 5_000.0),
        Gap(DAY_S - 5_000.0, DAY_S),
    )


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0, 4.0], ids=str)
def test_bursts_have_the_variation_asked_for(cv):
    """At a steady load. The spread of a CV over n gaps is about CV^2 / sqrt(n / 2) for these."""
    given = trace(100_000)
    steady = replace(given, arrival_s=np.linspace(0, DAY_S, len(given), endpoint=False))
    gaps = np.diff(with_bursts(steady, cv, seed=3).arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=4 * max(cv, 1) / 50_000**0.5)


def test_bursts_keep_every_request_its_order_and_the_load_of_each_ten_minutes():
    rng = np.random.default_rng(1)
    given = trace(60_000)
    wave = given.arrival_s + 5000 * np.sin(2 * np.pi * given.arrival_s / DAY_S)
    given = replace(given, arrival_s=np.sort(np.clip(wave + rng.normal(0, 1, len(wave)), 0, None)))
    made = with_bursts(given, 0.2, seed=1)
    assert_same_requests(made, given)
    # Gaps of CV 0.2 let a count of 400 stray by about 0.2 x sqrt(400) at each border.
    hourly = counts(given, 3600.0), counts(made, 3600.0)
    np.testing.assert_allclose(*hourly, atol=6 * 0.2 * 3000**0.5)
    assert np.ptp(hourly[0]) > 1000


def test_bursts_leave_gaps_silent():
    given = trace()
    outside = (given.arrival_s < 30_000) | (given.arrival_s > 31_234)
    given = replace(given.take(outside), gaps=(Gap(30_000.0, 31_234.0),))
    made = with_bursts(given, 3.0, seed=1)
    assert len(made) == len(given)
    assert not ((made.arrival_s > 30_000) & (made.arrival_s < 31_234)).any()


def test_thinning_keeps_its_share_of_whole_requests_of_every_client():
    given = trace()
    made = thinned(given, 0.3, seed=5)
    assert len(made) == pytest.approx(0.3 * len(given), abs=4 * (0.21 * len(given)) ** 0.5)
    whole = {*zip(*(c.tolist() for c in given.columns().values()), strict=True)}
    assert {*zip(*(c.tolist() for c in made.columns().values()), strict=True)} <= whole
    assert len(np.unique(made.client_id)) == 4
    assert len(thinned(given, 1.0, seed=5)) == len(given)


def test_pieces_are_spliced_end_to_end_and_keep_their_clients_apart():
    one, other = trace(3000, 3000.0), trace(1000, 5000.0, seed=1, name="u")
    other = replace(other, gaps=(Gap(100.0, 200.0),), prefix_hit_tokens=None)
    made = spliced([one, other, one])
    starts = [0.0, length_s(one), length_s(one) + length_s(other)]
    assert length_s(one) == pytest.approx(3001, abs=5)
    np.testing.assert_array_equal(made.arrival_s[3000:4000], other.arrival_s + starts[1])
    np.testing.assert_array_equal(made.arrival_s[4000:], one.arrival_s + starts[2])
    assert made.gaps == (Gap(100.0 + starts[1], 200.0 + starts[1]),)
    assert made.prefix_hit_tokens is None
    assert len(np.unique(made.client_id)) == 12
    assert made.header["edits"] == "spliced with u, t"


def test_overlaid_traces_add_up():
    one, other = trace(3000, 3000.0), replace(trace(1000, 5000.0, seed=1), gaps=(Gap(10.0, 30.0),))
    other = replace(other, client_id=None)
    made = overlaid([one, other])
    np.testing.assert_array_equal(
        counts(made, 100.0), np.pad(counts(one, 100.0), (0, 20)) + counts(other, 100.0)
    )
    assert made.output_tokens.sum() == one.output_tokens.sum() + other.output_tokens.sum()
    assert made.gaps == (Gap(10.0, 30.0),)
    assert made.client_id is None


def test_a_piece_has_its_own_clock_and_its_part_of_the_gaps():
    given = replace(trace(), gaps=(Gap(10.0, 20.0), Gap(900.0, 1100.0), Gap(1500.0, 2500.0)))
    piece = cut(given, 1000.0, 2000.0)
    inside = (given.arrival_s >= 1000) & (given.arrival_s < 2000)
    np.testing.assert_array_equal(piece.arrival_s, given.arrival_s[inside] - 1000)
    assert piece.gaps == (Gap(0.0, 100.0), Gap(500.0, 1000.0))
    with pytest.raises(ConfigError, match="holds no request from 90000 s"):
        cut(given, 90_000.0)


def test_lengths_are_scaled_and_their_tail_alone_stretched():
    given = trace()
    made = with_lengths(given, outputs=1.2, prompts=0.5)
    np.testing.assert_array_equal(made.output_tokens, np.rint(given.output_tokens * 1.2))
    assert made.prompt_tokens.min() == 1
    assert made.prompt_tokens.sum() == pytest.approx(0.5 * given.prompt_tokens.sum(), rel=0.01)
    assert made.prefix_hit_tokens.sum() == pytest.approx(made.prompt_tokens.sum() / 2, rel=0.01)
    tail = with_lengths(given, output_tail=1.5)
    median = np.median(given.output_tokens)
    short = given.output_tokens <= median
    np.testing.assert_array_equal(tail.output_tokens[short], given.output_tokens[short])
    np.testing.assert_allclose(
        tail.output_tokens[~short],
        median * (given.output_tokens[~short] / median) ** 1.5,
        atol=0.51,
    )
    np.testing.assert_array_equal(tail.prompt_tokens, given.prompt_tokens)


def test_the_header_tells_every_edit_in_order_and_keeps_the_origin():
    made = phase_shifted(thinned(trace(), 0.5, seed=2), 3600.0)
    assert made.header == {
        "origin": "made up",
        "edits": "thinned to 0.5, seed 2; shifted by 1 h of 24 h",
    }


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    given = trace()
    for edit in (lambda s: thinned(given, 0.5, s), lambda s: with_bursts(given, 2.0, s)):
        one, again, other = edit(1), edit(1), edit(2)
        assert one.arrival_s.tobytes() == again.arrival_s.tobytes()
        assert one.arrival_s.tobytes() != other.arrival_s.tobytes()


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda t: thinned(t, 0.0, 1), "thin: 0.0 of the requests"),
        (lambda t: thinned(t, 1e-9, 1), "leaves none"),
        (lambda t: with_bursts(t, -1.0, 1), "a CV of -1.0"),
        (lambda t: with_bursts(t.take(slice(0, 3)), 100.0, 2), "3 requests are too few for a CV"),
        (lambda t: with_lengths(t, outputs=float("nan")), "outputs is nan"),
    ],
    ids=["keeps nothing", "leaves nothing", "negative", "too few", "no number"],
)
def test_refuses_arguments_out_of_range(edit, sentence):
    with pytest.raises(ConfigError, match=sentence):
        edit(trace())
