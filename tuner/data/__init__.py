"""Readers, writers and importers: traces, serving profiles."""

from tuner.data.profiles import list_profiles, load_profile
from tuner.data.traces import read_trace, write_trace

__all__ = ["list_profiles", "load_profile", "read_trace", "write_trace"]
