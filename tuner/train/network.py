"""The trained network: scaled features, a small tanh net per role, actions that start at 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Space
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from policies.codec import Codec


class RangeScaler(BaseFeaturesExtractor):
    """Features from their declared ranges to -1..1: the normalisation, fixed for ever."""

    middle: Tensor
    half_width: Tensor

    def __init__(self, observation_space: Space[NDArray[np.float32]]) -> None:
        assert isinstance(observation_space, Box)
        super().__init__(observation_space, observation_space.shape[0])
        low = torch.as_tensor(observation_space.low)
        high = torch.as_tensor(observation_space.high)
        self.register_buffer("middle", (low + high) / 2)
        self.register_buffer("half_width", (high - low) / 2)

    def forward(self, observations: Tensor) -> Tensor:
        scaled: Tensor = (observations - self.middle) / self.half_width
        return scaled


class ActionNetwork(nn.Module):
    """The deterministic policy as it is exported: features to one action per knob.

    Input `(targets, features)` float32 as the codec gives them; output `(targets, knobs)` float32
    in -1..1, 0 for a knob without a head.
    """

    place: Tensor

    def __init__(self, policy: ActorCriticPolicy, codec: Codec) -> None:
        super().__init__()
        self.scale = policy.features_extractor
        self.body = policy.mlp_extractor.policy_net
        self.head = policy.action_net
        place = torch.zeros(len(codec.moves), len(codec.knobs.names))
        for row, name in enumerate(codec.moves):
            place[row, codec.knobs.column(name)] = 1.0
        self.register_buffer("place", place)

    def forward(self, features: Tensor) -> Tensor:
        action = torch.clamp(self.head(self.body(self.scale(features))), -1.0, 1.0)
        placed: Tensor = action @ self.place
        return placed

    def act(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same on arrays."""
        with torch.no_grad():
            action: NDArray[np.float32] = self(torch.as_tensor(features)).numpy()
        return action


def start_at_base_rule(policy: ActorCriticPolicy) -> None:
    """Every action 0, exactly: training starts at the base rule and not at a random one."""
    with torch.no_grad():
        for parameter in policy.action_net.parameters():
            parameter.zero_()


def policy_arguments(hidden: Sequence[int], noise_log_std: float) -> dict[str, Any]:
    """What stable-baselines3's MlpPolicy is made of."""
    return {
        "features_extractor_class": RangeScaler,
        "net_arch": {"pi": list(hidden), "vf": list(hidden)},
        "activation_fn": nn.Tanh,
        "log_std_init": noise_log_std,
    }
