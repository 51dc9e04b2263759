"""Rule-sets of engine schedulers that the simulator knows."""

from __future__ import annotations

from tuner.core.errors import ProfileError
from tuner.core.profile import ServingProfile

SCHEDULERS = {
    "vidur-sarathi": "Sarathi scheduler of microsoft/vidur@7d47513; `vidur_sarathi.py`",
}
"""Name in a profile -> what it imitates and where its rules are."""


def check_scheduler(profile: ServingProfile) -> None:
    """Refuse a profile whose rule-set is not known, or whose limits break its premise.

    Raises:
        ProfileError: see above.
    """
    if profile.scheduler not in SCHEDULERS:
        raise ProfileError(
            f"profile {profile.name}: scheduler is {profile.scheduler!r}; "
            f"expected one of: {', '.join(sorted(SCHEDULERS))}"
        )
    limits = profile.limits
    if limits.batch_size_max > limits.chunk_tokens:
        raise ProfileError(
            f"profile {profile.name}: limits.batch_size_max is {limits.batch_size_max}, above "
            f"limits.chunk_tokens {limits.chunk_tokens}; a batch must fit into one iteration"
        )
