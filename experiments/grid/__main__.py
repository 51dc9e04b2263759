"""Policies over a grid of scenarios: loads, cold starts, bursts, unit sizes, scales, authority.

Every scenario is one comparison, as `tuner compare` does it, tuned rules included; a scenario that
is done is not run again, so a grid that was killed goes on where it was.

Examples:
  python -m experiments.grid experiments/configs/grid.yaml --out runs/grid
  python -m experiments.grid experiments/configs/grid.yaml --list
  python -m experiments.grid my-traces.yaml --out runs/traces --jobs 8 --json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from experiments.fanout import cores
from experiments.folder import refuse_file, write_json
from experiments.grid.config import load_grid_config, scenarios
from experiments.grid.findings import as_json, caveats, findings_of, tables, verdict
from experiments.grid.run import run_grid
from experiments.interrupts import ends_on_interrupt
from experiments.progress import run_progress
from experiments.report.document import Table, write_document
from experiments.report.template import require_report_extra
from experiments.summary import plain
from tuner.core.errors import ConfigError, InputError
from tuner.data.files import replacing

EXIT_INPUT = 2


@ends_on_interrupt
def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0, or 2 and one sentence on bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    command = shlex.join(["python", "-m", "experiments.grid", *words])
    try:
        grid = load_grid_config(options.config)
        if options.list:
            print("\n".join(scenario.label for scenario in scenarios(grid)))
            return 0
        if options.out is None:
            raise ConfigError("--out is not given; name the folder of the results")
        if options.jobs < 1:
            raise ConfigError(f"--jobs is {options.jobs}; expected at least 1")
        require_report_extra()
        refuse_file(options.out)
        progress = Console(stderr=True)
        with run_progress(progress) as watch:
            cases = run_grid(
                grid,
                options.out,
                command=command,
                jobs=options.jobs,
                watch=watch,
                told=lambda line: progress.print(line, highlight=False, soft_wrap=True),
            )
        findings = findings_of(cases)
        # Imported here: tables on a terminal need no plots.
        from experiments.grid.page import document, markdown

        write_json(options.out / "grid.json", as_json(findings))
        write_document(document(findings, grid, command), options.out / "report.html")
        with replacing(options.out / "report.md") as temporary:
            temporary.write_text(markdown(findings, command), encoding="utf-8")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    if options.json:
        print(json.dumps(plain(as_json(findings)), indent=2))
        return 0
    console = Console()
    console.print(verdict(findings), style="bold", soft_wrap=not console.is_terminal)
    for table in tables(findings):
        for shown in _shown(table, console.width):
            console.print(shown)
    for caveat in caveats(findings):
        console.print(f"note: {caveat}", soft_wrap=not console.is_terminal, highlight=False)
    console.print(f"report: {options.out / 'report.html'}", soft_wrap=True, highlight=False)
    return 0


LONGEST = 26
"""Columns of a cell of several words, in which it is wrapped."""


def _shown(table: Table, width: int) -> Iterator[RichTable]:
    """The table; where it is wider than `width`, several of some of its columns, beside the first.

    No word is broken.
    """
    needed = [
        max(_least(text, LONGEST) for text in (column, *(row[place] for row in table.rows)))
        for place, column in enumerate(table.columns)
    ]
    groups: list[list[int]] = [[]]
    for place in range(1, len(table.columns)):
        taken = sum(needed[each] + 3 for each in (0, *groups[-1], place)) + 1
        if groups[-1] and taken > width:
            groups.append([])
        groups[-1].append(place)
    for number, group in enumerate(groups):
        shown = RichTable(
            title=table.title if number == 0 else None, title_justify="left", header_style="bold"
        )
        for place in (0, *group):
            shown.add_column(
                table.columns[place],
                justify="left" if place == 0 else "right",
                min_width=needed[place],
                overflow="fold",
            )
        for row in table.rows:
            shown.add_row(*(row[place] for place in (0, *group)))
        yield shown


def _least(text: str, most: int) -> int:
    """Columns in which a text stands in lines of at most `most`, no word broken."""
    return max(min(len(text), most), *(len(word) for word in text.split()), 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.grid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="the grid, YAML")
    parser.add_argument("--out", type=Path, help="folder of the results; it is made")
    parser.add_argument("--jobs", type=int, default=cores(), help="runs at once (one per core)")
    parser.add_argument("--list", action="store_true", help="print the scenarios and run nothing")
    parser.add_argument("--json", action="store_true", help="print grid.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
