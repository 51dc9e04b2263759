"""Service-level objectives and what it takes to meet them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Slo:
    """Latency objectives of one request.

    The defaults are bounds of vLLM's own histogram buckets (vllm/v1/metrics/loggers.py), so that
    the share of requests within them can be read exactly on a live fleet too.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
    }

    ttft_s: float = 2.5
    """Longest time to the first token, s."""
    tpot_s: float = 0.075
    """Longest mean time per output token after the first, s/token."""

    def met(self, ttft_s: NDArray[np.float64], tpot_s: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which requests met every objective.

        Args:
            ttft_s: `(requests,)`, NaN where a request never gave a token: it misses.
            tpot_s: `(requests,)`, NaN where a request did not finish: it misses. A finished
                request of one output token has TPOT 0 by definition and meets the objective.
        """
        return (ttft_s <= self.ttft_s) & (tpot_s <= self.tpot_s)
