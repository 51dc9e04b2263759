"""The spaces that single and vector environment share."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box, Space
from numpy.typing import NDArray

from policies.codec import Codec


def observation_space(codec: Codec) -> Space[NDArray[np.float32]]:
    """The codec's features: `(features,)` float32 between their bounds."""
    return Box(codec.observation_low, codec.observation_high, dtype=np.float32)


def action_space(codec: Codec) -> Space[NDArray[np.float32]]:
    """One number per knob: -1..1, and 0..0 for a knob that is pinned."""
    return Box(codec.action_low, codec.action_high, dtype=np.float32)
