"""`python -m tuner_sidecar`: serve the contract for the engine in the same pod."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from .contract import Contract, EngineError
from .contract.http import ControlServer, log_audit, token_from
from .engine import Engine, EngineHttp
from .sglang import Sglang
from .triton import Triton

AGAIN_S = 1.0
"""Between two looks at an engine that is still starting."""

_log = logging.getLogger("tuner.sidecar")

EPILOG = """examples:
  python -m tuner_sidecar sglang --engine http://127.0.0.1:30000 \\
    --port 8011 --token-file /etc/tuner/token
  python -m tuner_sidecar triton --engine http://127.0.0.1:8000 --model tiny \\
    --limit batch_size=1..64 --limit threads=1..4 --port 8011 --token-file /etc/tuner/token
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 2 for a wrong argument."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    parser = _parser()
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        engine = _engine(options)
        token_from(options.token_file)()
    except (ValueError, OSError) as fault:
        parser.error(str(fault))
    contract = _contract(engine, options, stop)
    if contract is None:
        return 0
    try:
        server = ControlServer(contract, host=options.host, port=options.port)
    except OSError as fault:
        parser.error(f"{options.host}:{options.port} is not to be had: {fault}")
    with server:
        _log.info("run-time control of %s on %s:%d", engine.name, options.host, server.port)
        stop.wait()
    # The engine runs on without us: nobody would end what is temporary.
    contract.release()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tuner_sidecar",
        description="Serves /v1/runtime_config for an engine on loopback that does not speak it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=("sglang", "triton"))
    parser.add_argument("--engine", required=True, metavar="URL", help="http://127.0.0.1:PORT")
    parser.add_argument("--engine-key-file", type=Path, help="file with the engine's admin key")
    parser.add_argument("--model", default="", help="Triton: the model whose knobs these are")
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="KNOB=LOW..HIGH",
        help="Triton: allowed range; without one, 1 to the value found at the start",
    )
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, required=True, help="of run-time control")
    parser.add_argument("--token-file", type=Path, required=True, help="file with the bearer token")
    parser.add_argument(
        "--timeout-s", type=float, default=8.0, help="per engine call (%(default)s)"
    )
    parser.add_argument(
        "--min-interval-s", type=float, default=1.0, help="between two changes (%(default)s)"
    )
    return parser


def _engine(options: argparse.Namespace) -> Engine:
    key = token_from(options.engine_key_file)() if options.engine_key_file else None
    http = EngineHttp(options.engine, timeout_s=options.timeout_s, key=key)
    if options.kind == "sglang":
        if options.limit or options.model:
            raise ValueError("--limit and --model are for Triton; SGLang tells both itself")
        return Sglang(http)
    if not options.model:
        raise ValueError("--model is missing: Triton serves several")
    return Triton(http, options.model, dict(_limit(text) for text in options.limit))


def _limit(text: str) -> tuple[str, tuple[int, int]]:
    name, _, span = text.partition("=")
    low, dots, high = span.partition("..")
    digits = low.isdecimal() and high.isdecimal()
    if name not in ("batch_size", "threads") or not dots or not digits:
        raise ValueError(f"--limit {text!r}: batch_size=1..64 or threads=1..4 is expected")
    if not 1 <= int(low) <= int(high):
        raise ValueError(f"--limit {text!r}: 1 <= low <= high is expected")
    return name, (int(low), int(high))


def _contract(
    engine: Engine, options: argparse.Namespace, stop: threading.Event
) -> Contract | None:
    """None: told to stop before the engine was up."""
    told = ""
    while not stop.is_set():
        try:
            about = engine.about()
            engine.to_start_up()
            knobs = engine.status().knobs or {}
        except EngineError as trouble:
            if str(trouble) != told:
                told = str(trouble)
                _log.info("waiting for the engine: %s", told)
            stop.wait(AGAIN_S)
            continue
        return Contract(
            knobs,
            engine.apply,
            engine.status,
            engine=engine.name,
            engine_version=about.version,
            model=about.model,
            token=token_from(options.token_file),
            min_interval_s=options.min_interval_s,
            audit=log_audit,
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
