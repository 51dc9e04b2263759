"""What a sandbox leaves for others: `tuner.yaml` and `prometheus.yml`."""

from __future__ import annotations

from pathlib import Path

import yaml

from envs.sandbox.cluster import SandboxCluster
from tuner.config import SCHEMA
from tuner.core.errors import InputError
from tuner.data.files import replacing

SCRAPE_S = 15.0
"""Between two scrapes of a Prometheus, simulated."""


def controller_config(
    cluster: SandboxCluster,
    *,
    url: str,
    speed: float,
    epoch_s: float,
    folder: Path,
    policy: str,
    profile: str,
    target: float,
) -> dict[str, object]:
    """`tuner.yaml` as plain data.

    Args:
        epoch_s: Unix time at which simulated and real time are equal.
        folder: for the audit log.
        policy: name, or the folder of a bundle.
        profile: name or file, for the predicted gain.
        target: output tokens/s per replica of the HPA rule.
    """
    rule = {"target": target}
    knobs = {
        "batch_size": {"low": 1, "high": cluster.profile.limits.batch_size_max},
        "replicas": {"low": 1, "high": cluster.max_replicas},
    }
    return {
        "schema": SCHEMA,
        "audit": f"sqlite:///{folder.resolve() / 'tuner-audit.db'}",
        "targets": [
            {
                "name": "sandbox",
                "policy": str(Path(policy).resolve()) if Path(policy).is_dir() else policy,
                **({"policy_options": rule} if policy == "hpa" else {}),
                "fallback": "hpa",
                "fallback_options": dict(rule),
                "engine": {"kind": "vllm", "model": cluster.model},
                "scrape": {},
                "sandbox": {"url": url, "speed": speed, "epoch_s": epoch_s},
                "traffic": {
                    "arrivals": "tuner_load_requests_total",
                    "in_flight": "tuner_load_in_flight",
                    "url": f"{url}/traffic/metrics",
                },
                "knobs": knobs,
                "move": ["replicas", "batch_size"],
                "promotion": {"profile": profile},
            }
        ],
    }


def prometheus_config(url: str, speed: float) -> str:
    """`prometheus.yml`. Prometheus keeps real time: only at speed 1 are its rates per second."""
    config = {
        "global": {"scrape_interval": f"{max(round(SCRAPE_S / speed), 1)}s"},
        "scrape_configs": [
            {
                "job_name": "sandbox",
                "honor_labels": True,  # `pod` is on the page
                "static_configs": [{"targets": [url.removeprefix("http://")]}],
            }
        ],
    }
    note = ""
    if speed != 1.0:
        note = (
            f"# The sandbox runs {speed:g} times as fast as Prometheus' own clock, so rates seen "
            f"here are {speed:g} times\n# those of the simulation. For a controller that reads "
            "Prometheus, start it with --speed 1.\n"
        )
    return note + yaml.safe_dump(config, sort_keys=False)


def write(folder: Path, config: dict[str, object], prometheus: str) -> None:
    """Both files, each whole or absent; the folder is made.

    Raises:
        InputError: the folder cannot be made or written.
    """
    make_folder(folder)
    with replacing(folder / "tuner.yaml") as path:
        path.write_text(
            "# Written by `tuner sandbox`, for as long as it runs: it begins anew with another "
            "epoch.\n" + yaml.safe_dump(config, sort_keys=False),
            encoding="utf-8",
        )
    with replacing(folder / "prometheus.yml") as path:
        path.write_text(prometheus, encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Make it and the folders above.

    Raises:
        InputError: it is a file, or may not be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}; name another folder") from error
