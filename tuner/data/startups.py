"""Named starts of a replica, to stand in for a profile's own: `warm`, `normal` and `cold`.

About 2, 8 and 20 minutes, +-30 % (two thirds of the starts). Nobody has published the stages of one
start of a 671B-class model; the totals are anchored on whole starts that were, the stages on single
reports of each, and what is left is judged:

| stage | warm | normal | cold | public figures (seconds), and what is judged |
| --- | --- | --- | --- | --- |
| schedule | 5 | 10 | 60 | judged: a pod that finds a node, or waits until one is made |
| image | 0 | 10 | 450 | on the node, but for `cold`: 300-360 to pull and 180-240 to extract 20 GB
  (bentoml.com, cold-starting LLMs on Kubernetes); 450 judged, as the two overlap |
| weights | 45 | 170 | 340 | 32-60 from the page cache and 65-217 from three NVMe disks, by loader
  (sgl-project/sglang PR 7943); `cold` is judged: twice that, fetched over the network |
| compile | 64 | 270 | 240 | 31-91 for an 8B-class engine (vllm-project/vllm issue 20264,
  run-ai/runai-model-streamer issue 67), none for 671B; judged: the remainder of the whole |
| whole | 120 | 480 | 1200 | `warm`: judged; `normal`: 480 from process to ready, DeepSeek-V4-Flash
  on 8xH20, local weights (vllm-project/vllm issue 43189); `cold`: 1200 with download, DeepSeek-R1
  on 8xH200 (sgl-project/sglang issue 3825), and as much on GKE (dsri.org, testing DeepSeek-R1) |

The ramp goes with the start. Throughput of the first, second and third 512 requests, relative to
the rounds after them (DeepSeek-V3-0324 on one node, TP8 DP8, sgl-project/sglang PR 4858, one run):
67, 84 and 100 % with kernels compiled ahead, which is `warm` and `normal`; 10.5, 68 and 98 % where
they compile when they are first called, which is `cold`. An engine that compiles them ahead on a
cold cache takes 10 to 20 minutes longer to start (sgl-project/sglang PR 15891) and has the gentle
ramp: write that into a profile's own `startup.stages.compile`; `cold` pays in the ramp instead, and
never twice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tuner.core.profile import ServingProfile, Stage, Stages, Startup

StartupName = Literal["warm", "normal", "cold"]

COMPILED_AHEAD = ((512, 0.67), (512, 0.84))
COMPILED_AT_FIRST_CALL = ((512, 0.105), (512, 0.68), (512, 0.98))
"""Ramps: (requests, speed)."""


def _stages(spread: float, schedule: float, image: float, weights: float, compile: float) -> Stages:
    return Stages(
        *(Stage(median_s, spread) for median_s in (schedule, image, weights, compile)),
    )


STARTUPS: dict[StartupName, Startup] = {
    "warm": Startup(_stages(0.45, 5, 0, 45, 64), ramp=COMPILED_AHEAD),
    "normal": Startup(_stages(0.45, 10, 10, 170, 270), ramp=COMPILED_AHEAD),
    "cold": Startup(_stages(0.55, 60, 450, 340, 240), ramp=COMPILED_AT_FIRST_CALL),
}
"""Spreads such that about two thirds of the whole starts lie within 30 % of the median."""


def with_startup(profile: ServingProfile, name: StartupName | None) -> ServingProfile:
    """The profile with a named start in place of its own; None: as it is.

    Stages and ramp are those of the named start; what a warm-up request costs stays the profile's,
    since it follows from how fast the replica serves.
    """
    if name is None:
        return profile
    own = profile.startup
    startup = replace(STARTUPS[name], warmup_request_s=own.warmup_request_s if own else 0.0)
    origin = {key: words for key, words in profile.origin.items() if not _is_replaced(key)}
    assumed = (key for key in profile.assumed if not _is_replaced(key))
    return replace(
        profile,
        startup=startup,
        origin=origin | {"startup": f"The named start {name!r}, in place of the profile's own."},
        assumed=(*assumed, "startup.stages"),
    )


def _is_replaced(key: str) -> bool:
    """Whether a key of a profile is about the start that a named one stands in for."""
    return key.split(".")[0] == "startup" and key != "startup.warmup_request_s"
