"""Tokens of a request, in the mean, from what is measured by the second."""

from __future__ import annotations

import numpy as np

from tuner.core.protocols import FloatArray


def tokens_each(tokens: FloatArray, requests: FloatArray, most: float) -> FloatArray:
    """Tokens over requests, or over requests/s where both are rates; NaN where there are none.

    Args:
        tokens, requests: of one shape; what is no number is not known.
        most: that one request can have: what the KV cache of a replica holds. Next to no requests
            would make any number of tokens theirs.
    """
    some = np.isfinite(tokens) & np.isfinite(requests) & (requests > 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(some, np.minimum(tokens / requests, most), np.nan)
