"""Which certificates are trusted, loaded once.

Each HTTP client would load the roots for itself: 36 ms and 0.7 MB, which fifty targets with two
clients each turn into seconds and 70 MB.
"""

from __future__ import annotations

import ssl
from functools import cache

import httpx


@cache
def trusted_roots() -> ssl.SSLContext:
    """For every client of this process; `SSL_CERT_FILE` names a private authority. Nothing may be
    changed on it."""
    return httpx.create_ssl_context()
