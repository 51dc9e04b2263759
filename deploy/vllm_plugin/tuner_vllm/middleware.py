"""The API server's side: opens the control port when the server starts, closes it when it ends.

Requests pass through untouched: nothing of run-time control is on the serving port. An ASGI class
is simply the hook that vLLM offers (`--middleware`) to code that must run inside the API server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vllm import __version__

from .contract import AuditLine, Contract, EngineError
from .contract.http import ControlServer, token_from
from .engine import Ranks
from .settings import Settings
from .versions import check

check(__version__)
SETTINGS = Settings.from_environment(os.environ)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_log = logging.getLogger("vllm.tuner")


class TunerControl:
    """Passes everything on, and keeps a control server as long as the application lives."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await self._live(scope, receive, send)

    async def _live(self, scope: Message, receive: Receive, send: Send) -> None:
        server: ControlServer | None = None

        async def sending(message: Message) -> None:
            nonlocal server
            if message["type"] == "lifespan.startup.complete":
                try:
                    server = await _start(scope["app"].state)
                except (EngineError, OSError) as trouble:
                    sentence = f"tuner_vllm: run-time control did not start: {trouble}"
                    _log.error("%s", sentence)
                    message = {"type": "lifespan.startup.failed", "message": sentence}
            await send(message)

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and server is not None:
                await asyncio.to_thread(server.close)
            return message

        await self._app(scope, receiving, sending)


def _audit(line: AuditLine) -> None:
    """On vLLM's own log: other loggers have no handler in its process."""
    _log.info("%s", json.dumps(line.to_json()))


async def _start(state: Any) -> ControlServer | None:
    core = state.engine_client.engine_core
    if core.client_index != 0:
        return None  # of several API servers on one engine the first has the control port
    return await asyncio.to_thread(_serve, state, asyncio.get_running_loop())


def _serve(state: Any, loop: asyncio.AbstractEventLoop) -> ControlServer:
    """
    Raises:
        EngineError: the engine core does not answer our calls: no `--scheduler-cls`.
        OSError: the port is taken.
    """
    ranks = Ranks(
        state.engine_client.engine_core.call_utility_all_async,
        loop,
        threads=getattr(state.args, "api_server_count", None) or 1,
    )
    try:
        status = ranks.status()
    except EngineError as trouble:
        raise EngineError(
            f"{trouble}; is --scheduler-cls tuner_vllm.scheduler.TunerScheduler given?"
        ) from None
    contract = Contract(
        status.knobs or {},
        ranks.apply,
        ranks.status,
        engine="vllm",
        engine_version=__version__,
        model=(state.args.served_model_name or [state.args.model])[0],
        token=token_from(SETTINGS.token_file),
        min_interval_s=SETTINGS.min_interval_s,
        audit=_audit,
    )
    server = ControlServer(contract, host=SETTINGS.host, port=SETTINGS.port)
    server.start()
    _log.info("run-time control on %s:%d", SETTINGS.host, server.port)
    return server
