"""From measurements to a serving profile: what fits best, how sure it is, and how far off.

| measurements | module | fit |
| --- | --- | --- |
| step logs | `steps.py` | relative least squares, non-negative, intervals by block bootstrap |
| closed-loop benchmark points | `points.py`, `closed_loop.py` | by simulation, with priors |
| telemetry alone | `telemetry.py` | by simulation: Optuna's search, then downhill |

Each gives the profile's figures as `Coefficient`s and its errors by name; `result.calibrated` puts
them into a profile. `cautions.py` says what a recording of telemetry cannot tell. `replay.py` holds
a profile against recorded requests.
"""

from envs.calibrate.closed_loop import PointFit, fit_points, law_of
from envs.calibrate.points import Point, Simulated, errors, read_points, simulate_point
from envs.calibrate.replay import Recording, Replay, read_recording, replay
from envs.calibrate.result import Coefficient, calibrated
from envs.calibrate.steps import StepFit, StepLog, fit_steps, read_step_log
from envs.calibrate.telemetry import TelemetryFit, fit_telemetry, ready_for_fit

__all__ = [
    "Coefficient",
    "Point",
    "PointFit",
    "Recording",
    "Replay",
    "Simulated",
    "StepFit",
    "StepLog",
    "TelemetryFit",
    "calibrated",
    "errors",
    "fit_points",
    "fit_steps",
    "fit_telemetry",
    "law_of",
    "read_points",
    "read_recording",
    "read_step_log",
    "ready_for_fit",
    "replay",
    "simulate_point",
]
