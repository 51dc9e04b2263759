"""How fast the parts are: `python -m experiments.bench PART ...` prints one JSON object.

Rates are per second of CPU time, the median of the repeats after one run that warms up compiler
and caches. On a shared machine compare rates of one run with each other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from experiments.interrupts import ends_on_interrupt
from tuner.core.errors import InputError

EXIT_INPUT = 2

PARTS = {
    "simulator": "requests simulated per CPU second",
    "rules": "what each rule-set makes of one load",
    "env": "environment steps per CPU second",
    "train": "PPO steps per CPU second, end to end",
    "memory": "bytes of an environment",
    "compile": "seconds until the simulator runs, with and without its cache",
    "peers": "the same trace in other simulators, in the same run",
    "day": "DeepSeek's published day, 100 million requests on 278 nodes",
    "collector": "seconds of one look at many replicas",
    "tick": "a tick of the controller over HTTP",
}
"""Name -> what is measured; each is the module of that name, and only that one is imported."""


@ends_on_interrupt
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the part named by the arguments; 0, or 2 and one sentence on bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench",
        description=__doc__,
        epilog="\n".join(f"{name:12}{text}" for name, text in PARTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=PARTS, metavar="PART", help="see below; PART --help")
    part = parser.parse_args(words[:1]).part
    module = import_module(f"experiments.bench.{part}")
    options = argparse.ArgumentParser(
        prog=f"python -m experiments.bench {part}", description=module.__doc__
    )
    module.add_options(options)
    try:
        figures = module.measure(options.parse_args(words[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    try:
        print(json.dumps(figures, indent=2), flush=True)
    except BrokenPipeError:  # whoever read along has seen enough, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
