"""Where runs go: processes of this machine, or the workers of a Ray cluster."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from experiments.fanout import cores
from tuner.core.errors import InputError

ExecutorName = Literal["local", "ray"]


@dataclass(frozen=True)
class Executor:
    """What the command line asked for. The numbers do not depend on any of it."""

    name: ExecutorName = "local"
    jobs: int | None = None
    """Runs at once; None: one per core there is."""
    address: str | None = None
    """Of a running Ray cluster; None: one of this machine, for the time of the command."""

    @contextmanager
    def started(self) -> Iterator[int]:
        """Runs that are spread within the block go there; gives how many at once.

        Raises:
            InputError: Ray is not installed or not to be reached, or an address is given for
                local processes.
        """
        if self.name == "ray":
            with self._ray() as jobs:
                yield jobs
            return
        if self.address is not None:
            raise InputError(
                f"--ray-address {self.address} goes with --executor ray; add that, or leave it out"
            )
        yield self.jobs or cores()

    @contextmanager
    def _ray(self) -> Iterator[int]:
        try:
            import ray
            from ray.util.joblib import register_ray
        except ImportError as error:
            raise InputError(
                "ray is not installed; install deepseek-tuner[report,ray], or leave --executor ray "
                "out"
            ) from error
        from joblib import parallel_config

        if self.address is not None:
            _reach(self.address)
        own = {} if self.address else {"num_cpus": self.jobs or cores(), "include_dashboard": False}
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:  # Ray raises bare ones where a part of it does not start
            where = f"at {self.address} does not answer" if self.address else "does not start"
            raise InputError(
                f"the Ray cluster {where} ({error}); start one with `ray start --head` and name it "
                "with --ray-address, or leave --executor ray out"
            ) from error
        try:
            register_ray()
            with parallel_config(backend="ray"):
                yield self.jobs or int(ray.cluster_resources().get("CPU", 1))
        finally:
            ray.shutdown()


REACH_S = 10.0
"""Longest wait for a cluster's port: Ray itself goes on trying for minutes."""


def _reach(address: str) -> None:
    """Refuse a HOST:PORT, or ray://HOST:PORT, at which nothing listens.

    Raises:
        InputError: nothing does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return  # "auto": Ray knows where to look
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"the Ray cluster at {address} does not answer ({error}); name the HOST:PORT that "
            "`ray start --head` prints"
        ) from error
