"""The exact simulator: engine iterations of a fleet of replicas, event by event."""

from envs.simulator.buckets import E2E_BOUNDS_S, FIRST_BUCKET, TPOT_BOUNDS_S, TTFT_BOUNDS_S
from envs.simulator.fleet import EnvFactors, Fleet, FleetSettings
from envs.simulator.layout import ReplicaState
from envs.simulator.routing import ROUTERS
from envs.simulator.schedulers import SCHEDULERS
from envs.simulator.telemetry import Counters, Gauges, RequestColumns, Window

__all__ = [
    "E2E_BOUNDS_S",
    "FIRST_BUCKET",
    "ROUTERS",
    "SCHEDULERS",
    "TPOT_BOUNDS_S",
    "TTFT_BOUNDS_S",
    "Counters",
    "EnvFactors",
    "Fleet",
    "FleetSettings",
    "Gauges",
    "ReplicaState",
    "RequestColumns",
    "Window",
]
