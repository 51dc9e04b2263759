"""What a load run leaves behind: a row per request, a summary, and the warnings it deserves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tuner.core.errors import InputError
from tuner.data.files import replacing
from tuner.live.load.driver import LoadRun, Sent
from tuner.live.load.streaming import FailureKind

SCHEMA = "tuner.load/1"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

LAG_S = 0.05
"""A request that leaves later than this distorts the arrivals that engines see: two decode
iterations of a large model."""
LAG_SHARE = 0.1
"""Of the median TTFT; more than that blurs what is measured."""

COLUMNS = pa.schema(
    [
        pa.field("request", pa.int64(), nullable=False),
        pa.field("due_s", pa.float64(), nullable=False),
        pa.field("sent_s", pa.float64(), nullable=False),
        pa.field("lag_s", pa.float64(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("http_status", pa.int16()),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("output_tokens", pa.int32(), nullable=False),
        pa.field("prompt_tokens_counted", pa.int32()),
        pa.field("output_tokens_received", pa.int32(), nullable=False),
        pa.field("ttft_s", pa.float64()),
        pa.field("tpot_s", pa.float64()),
        pa.field("e2e_s", pa.float64()),
        pa.field("itl_s", pa.list_(pa.float32()), nullable=False),
    ]
)
"""requests.parquet: `request` is the row of the trace, `due_s` and `sent_s` count from the start of
the run, `outcome` is `finished` or a kind of failure, `itl_s` holds the gaps between tokens."""

NOT_SENT = (FailureKind.NOT_SENT, FailureKind.NO_ENDPOINT)


def summarise(run: LoadRun, *, trace: str) -> dict[str, Any]:
    """The run's figures; seconds, requests, tokens. A quantile of nothing is null."""
    rows = run.rows
    sent = [row for row in rows if row.answer.failure not in NOT_SENT]
    finished = [row for row in sent if row.answer.failure is None]
    span_s = max((row.sent_s for row in sent), default=0.0)
    due_s = float(run.plan.due_s[-1]) if len(run.plan) else 0.0
    return {
        "schema": SCHEMA,
        "trace": trace,
        "urls": list(run.endpoints.all_urls),
        "options": asdict(run.options),
        "interrupted": run.stopped,
        "planned": len(run.plan),
        "sent": len(sent),
        "finished": len(finished),
        "failed": _failures(sent),
        "not_sent": _failures([row for row in rows if row.answer.failure in NOT_SENT]),
        "short_answers": sum(row.answer.output_tokens < row.output_tokens for row in finished),
        "clipped": {"prompts": run.plan.clipped_prompts, "outputs": run.plan.clipped_outputs},
        "tokens": {
            "prompt_asked": sum(row.prompt_tokens for row in sent),
            "prompt_counted": sum(row.answer.prompt_tokens or 0 for row in finished),
            "output_asked": sum(row.output_tokens for row in sent),
            "output_received": sum(row.answer.output_tokens for row in sent),
        },
        "rate": {
            "asked_qps": _rate(len(run.plan), due_s),
            "sent_qps": _rate(len(sent), span_s),
        },
        "ttft_s": _quantiles([row.answer.ttft_s for row in finished]),
        "tpot_s": _quantiles([row.answer.tpot_s for row in finished]),
        "itl_s": _quantiles(
            np.concatenate([_gaps(row) for row in finished] or [np.empty(0, np.float32)])
        ),
        "e2e_s": _quantiles([row.answer.e2e_s for row in finished]),
        "dispatch_lag_s": _quantiles([row.lag_s for row in sent]),
        "by_url": dict(Counter(row.url for row in sent)),
    }


def warnings(summary: Mapping[str, Any], run: LoadRun) -> list[str]:
    """What a reader of the figures must know first."""
    found = sorted(run.trouble)
    lag_s, ttft_s = summary["dispatch_lag_s"]["p99"], summary["ttft_s"]["p50"]
    if lag_s is not None and (lag_s > LAG_S or (ttft_s and lag_s > LAG_SHARE * ttft_s)):
        beside = f" beside a median TTFT of {ttft_s:.3g} s" if ttft_s else ""
        found.append(
            f"requests left late through the driver's own fault: {lag_s:.3g} s at the 99th "
            f"percentile{beside}; lower --speed, free this machine, or split the trace over "
            "several drivers"
        )
    for kind, count in summary["not_sent"].items():
        found.append(f"{count:,} requests of the trace were not sent ({kind})")
    if summary["short_answers"]:
        found.append(
            f"{summary['short_answers']:,} answers ended before the tokens that were asked for: "
            "the engine does not follow min_tokens and ignore_eos"
        )
    for what, count in summary["clipped"].items():
        if count:
            found.append(f"{count:,} {what} were cut to the length that was given")
    return found


def write(folder: Path, run: LoadRun, summary: Mapping[str, Any]) -> None:
    """`requests.parquet` and `summary.json`, each whole or absent; the folder is made.

    Raises:
        InputError: the folder cannot be made or written.
    """
    make_folder(folder)
    with replacing(folder / "requests.parquet") as path:
        pq.write_table(_table(run.rows), path, compression="zstd")
    with replacing(folder / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


@contextmanager
def folder_for(folder: Path | None) -> Iterator[None]:
    """Make it now rather than after the work, and take away what was made if the block fails.

    Raises:
        InputError: it is a file, or may not be made.
    """
    made = [] if folder is None else [one for one in (folder, *folder.parents) if not one.exists()]
    if folder is not None:
        make_folder(folder)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # something has been put there
            for one in made:
                one.rmdir()
        raise


def make_folder(folder: Path) -> None:
    """Make it and the folders above.

    Raises:
        InputError: it is a file, or may not be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}; name another folder") from error


def _table(rows: Sequence[Sent]) -> pa.Table:
    answers = [row.answer for row in rows]
    columns = {
        "request": [row.request for row in rows],
        "due_s": [row.due_s for row in rows],
        "sent_s": [row.sent_s for row in rows],
        "lag_s": [row.lag_s for row in rows],
        "url": [row.url for row in rows],
        "outcome": [answer.outcome for answer in answers],
        "http_status": [answer.status for answer in answers],
        "prompt_tokens": [row.prompt_tokens for row in rows],
        "output_tokens": [row.output_tokens for row in rows],
        "prompt_tokens_counted": [answer.prompt_tokens for answer in answers],
        "output_tokens_received": [answer.output_tokens for answer in answers],
        "ttft_s": [answer.ttft_s for answer in answers],
        "tpot_s": [answer.tpot_s for answer in answers],
        "e2e_s": [answer.e2e_s for answer in answers],
        "itl_s": [_gaps(row) for row in rows],
    }
    return pa.table(columns, schema=COLUMNS)


def _gaps(row: Sent) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (
        np.frombuffer(row.answer.gaps_s, np.float32)
        if row.answer.gaps_s
        else np.empty(0, np.float32)
    )


def _failures(rows: Sequence[Sent]) -> dict[str, int]:
    return dict(sorted(Counter(row.answer.outcome for row in rows if row.answer.failure).items()))


def _rate(count: int, span_s: float) -> float | None:
    """Requests per second between the first and the last one."""
    return (count - 1) / span_s if count > 1 and span_s > 0 else None


def _quantiles(values: Sequence[float | None] | np.ndarray[Any, Any]) -> dict[str, float | None]:
    known = np.array([value for value in values if value is not None], np.float64)
    if len(known) == 0:
        return dict.fromkeys(["mean", *QUANTILES, "max"])
    return {
        "mean": float(known.mean()),
        **{name: float(np.quantile(known, q)) for name, q in QUANTILES.items()},
        "max": float(known.max()),
    }
