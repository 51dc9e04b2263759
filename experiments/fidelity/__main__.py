"""How wrong the simulator is: exactness, distributions by load, and decisions.

Three answers:
  - against runs of another simulator on the same requests (--reference): the largest error of any
    request, and the distributions of TTFT, TPOT and E2E with block-bootstrap intervals;
  - by load: the profile against itself, slowed by its own error, from 40 to 97 % of capacity;
  - decisions: ten policies on the profile and on doubles of it, perturbed within its error:
    Kendall's tau of the two orders, and the regret of the double's choice.

Examples:
  python -m experiments.fidelity --page fidelity.html
  python -m experiments.fidelity --profile my-profile.yaml --trace my-day.parquet --doubles 8
  python -m experiments.fidelity --reference load.csv.gz times.csv.gz reference-affine --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.config import MOST_REPLICAS
from experiments.fanout import cores
from experiments.fidelity.command import as_json, command_line, find, print_findings
from experiments.interrupts import ends_on_interrupt
from experiments.progress import run_progress
from experiments.report.document import write_document
from experiments.report.template import require_report_extra
from experiments.summary import plain
from tuner.core.errors import ConfigError, InputError
from tuner.data.files import refuse_unwritable

EXIT_INPUT = 2


@ends_on_interrupt
def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0, or 2 and one sentence on bad input, or 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    try:
        _check(options)
        refuse_unwritable({"--page": options.page})
        if options.page:
            require_report_extra()
        with run_progress(Console(stderr=True)) as watch:
            findings = find(
                references=options.reference,
                profile=options.profile,
                trace=options.trace,
                error=tuple(options.error) if options.error else None,
                requests=options.requests,
                replicas=options.replicas,
                doubles=options.doubles,
                seed=options.seed,
                jobs=options.jobs,
                watch=watch,
            )
        if options.page:
            # Imported here: the tables need no plots.
            from experiments.fidelity.page import document

            write_document(document(findings, command_line(words)), options.page)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    if options.json:
        print(json.dumps(plain(as_json(findings)), indent=2))
    else:
        print_findings(findings, Console())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.fidelity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--reference",
        nargs=3,
        action="append",
        default=[],
        metavar=("LOAD", "TIMES", "PROFILE"),
        help="a run of another simulator on four replicas, round robin: CSV files of its load "
        "(arrived_at, num_prefill_tokens, num_decode_tokens) and its times (ttft_s, e2e_s), and "
        "the profile that stands for it; may be repeated",
    )
    parser.add_argument("--profile", default="deepseek-r1-8xh200-sglang", help="what is judged")
    parser.add_argument("--trace", type=Path, help="load of the decisions (six built-in hours)")
    parser.add_argument(
        "--error",
        nargs=2,
        type=float,
        metavar=("TPOT", "TTFT"),
        help="relative errors of the profile (what it states, else 0.05)",
    )
    parser.add_argument("--requests", type=int, default=20_000, help="of a load band (20000)")
    parser.add_argument("--replicas", type=int, default=4, help="of the load bands (4)")
    parser.add_argument("--doubles", type=int, default=5, help="perturbed profiles (5)")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (0)")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes (one per core)")
    parser.add_argument("--page", type=Path, help="HTML file to write")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def _check(options: argparse.Namespace) -> None:
    for name in ("requests", "replicas", "doubles", "jobs"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}; expected at least 1")
    if options.replicas > MOST_REPLICAS:
        raise ConfigError(f"--replicas is {options.replicas}; expected at most {MOST_REPLICAS:,}")
    if not 0 <= options.seed < 2**63:
        raise ConfigError(f"--seed is {options.seed}; expected a whole number from 0, below 2^63")
    if options.error and not all(0 <= error < 1 for error in options.error):
        raise ConfigError(
            f"--error is {options.error[0]:g} {options.error[1]:g}; "
            "expected relative errors from 0 to below 1, such as 0.01 0.06"
        )


if __name__ == "__main__":
    sys.exit(main())
