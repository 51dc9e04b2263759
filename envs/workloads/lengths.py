"""Where the lengths of counted requests come from: kinds of requests, and which client sends which.

Counts say who sent how much; the lengths are DeepSeek-R1's, of other clients. Each counted client
gets one kind, so that the mix still changes as clients come and go, and the kinds are given out so
that all requests together are mixed as R1's were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.workloads.deepseek_r1_day import TRAFFIC, tokens_at
from tuner.data.counts import WINDOW_S, ClientCounts, ClientLengths, Distribution

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]
Shares = NDArray[np.float64]


class Lengths(Protocol):
    """Draws prompt and output lengths by kind of request."""

    @property
    def name(self) -> str:
        """For a trace's header."""

    def kinds(self, counts: ClientCounts) -> Ints:
        """`(rows,)` kind of the requests in each row of the counts."""

    def draw(self, kind: Ints, shares: Shares) -> tuple[Tokens, Tokens]:
        """Prompt and output tokens, `(requests,)` each.

        Args:
            kind: `(requests,)`.
            shares: `(requests, 2)` places in the two distributions, 0-1.
        """


class TrafficLengths:
    """The six kinds of traffic of `deepseek-r1-day`."""

    name = "deepseek-r1-day"

    def kinds(self, counts: ClientCounts) -> Ints:
        return given_out(counts, np.array([traffic.share for traffic in TRAFFIC]))

    def draw(self, kind: Ints, shares: Shares) -> tuple[Tokens, Tokens]:
        prompts, outputs = np.empty((2, len(kind)), np.int32)
        for place, traffic in enumerate(TRAFFIC):
            rows = kind == place
            prompts[rows] = tokens_at(traffic.prompt_tokens, shares[rows, 0])
            outputs[rows] = tokens_at(traffic.output_tokens, shares[rows, 1])
        return prompts, outputs


class MeasuredLengths:
    """Measured distributions; a kind is a measured client, or that client in one span of time.

    Args:
        measured: the distributions.
        name: of the file.
        same_clients: the counts are of the very clients, so each keeps its own; those that have
            none are given one as if they were others.
    """

    def __init__(
        self, measured: Sequence[ClientLengths], name: str, *, same_clients: bool = False
    ) -> None:
        self.name = name
        self._same_clients = same_clients
        self._spans = sorted(measured, key=lambda one: one.start_s)
        self._clients = _over_all_time(measured)
        kinds = [*self._clients, *self._spans]
        self._prompt = _Tables([one.prompt for one in kinds])
        self._output = _Tables([one.output for one in kinds])

    def kinds(self, counts: ClientCounts) -> Ints:
        kinds = given_out(counts, np.array([one.requests for one in self._clients]))
        if not self._same_clients:
            return kinds
        start_s = counts.window * WINDOW_S
        met: set[int] = set()
        for kind, one in enumerate(self._spans, start=len(self._clients)):
            # The earliest span stands for the time before it too.
            holds = (start_s >= one.start_s) | (one.client_id not in met)
            kinds[(counts.client_id == one.client_id) & holds] = kind
            met.add(one.client_id)
        return kinds

    def draw(self, kind: Ints, shares: Shares) -> tuple[Tokens, Tokens]:
        return self._prompt.at(kind, shares[:, 0]), self._output.at(kind, shares[:, 1])


def _over_all_time(measured: Sequence[ClientLengths]) -> list[ClientLengths]:
    """One entry per client, its spans mixed as its requests were."""
    spans: dict[int, list[ClientLengths]] = {}
    for one in measured:
        spans.setdefault(one.client_id, []).append(one)
    return [
        ClientLengths(
            client_id=client_id,
            start_s=0.0,
            requests=sum(one.requests for one in mine),
            prompt=_mixed([one.prompt for one in mine], [one.requests for one in mine]),
            output=_mixed([one.output for one in mine], [one.requests for one in mine]),
        )
        for client_id, mine in spans.items()
    ]


def _mixed(distributions: Sequence[Distribution], weights: Sequence[float]) -> Distribution:
    tokens, place = np.unique(
        np.concatenate([one.tokens for one in distributions]), return_inverse=True
    )
    share = np.concatenate(
        [one.share * weight for one, weight in zip(distributions, weights, strict=True)]
    )
    return Distribution(tokens, np.bincount(place, weights=share) / sum(weights))


class _Tables:
    """Several distributions behind each other, so that one search finds all lengths."""

    def __init__(self, distributions: Sequence[Distribution]) -> None:
        self._tokens = np.concatenate([one.tokens for one in distributions])
        ends = np.cumsum([len(one.tokens) for one in distributions])
        self._first = np.concatenate(([0], ends[:-1]))
        self._last = ends - 1
        # Kind k takes the numbers from k to k + 1.
        cumulative = [np.cumsum(one.share) + kind for kind, one in enumerate(distributions)]
        self._reached = np.concatenate(cumulative)

    def at(self, kind: Ints, shares: Shares) -> Tokens:
        found = np.searchsorted(self._reached, kind + shares, side="right")
        # Sums of shares end a rounding error before or behind 1.
        return self._tokens[np.clip(found, self._first[kind], self._last[kind])]


def given_out(counts: ClientCounts, weights: NDArray[np.float64]) -> Ints:
    """`(rows,)` a kind for each client, so that the kinds' requests come close to their weights.

    The largest client first, each gets the kind that lacks most; no seed has a part in it.
    """
    clients, place = np.unique(counts.client_id, return_inverse=True)
    volume = np.bincount(place, weights=counts.requests)
    lacking = weights / weights.sum() * volume.sum()
    kinds = np.empty(len(clients), np.int64)
    left = volume.sum()
    for client in np.argsort(-volume, kind="stable"):
        kinds[client] = kind = int(np.argmax(lacking))
        lacking[kind] = max(lacking[kind] - volume[client], 0.0)
        left -= volume[client]
        # Where one client is more than its kind, the others keep their proportions.
        lacking *= left / max(lacking.sum(), 1e-9)
    return np.asarray(kinds[place])
