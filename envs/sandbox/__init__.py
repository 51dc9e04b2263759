"""A simulated cluster in wall-clock time, served over HTTP as a real one would be."""

from envs.sandbox.cluster import SandboxCluster
from envs.sandbox.server import SandboxServer

__all__ = ["SandboxCluster", "SandboxServer"]
