"""`tuner status`: where each target stands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuner.commands.audit_log import (
    AuditOption,
    ConfigOption,
    JsonOption,
    TargetOption,
    age,
    looking,
    names_of,
    sentence_of,
)

if TYPE_CHECKING:
    from tuner.control.status import TargetStatus

SILENT_TICKS = 4.0
"""A controller that has not decided for so many periods is hung or gone."""
USUAL_TICK_S = 15.0
"""Where no configuration says how often it decides."""

_STYLES = {"policy": "green", "fallback": "yellow", "hold": "red"}


def command(
    config: ConfigOption = None,
    audit: AuditOption = None,
    target: TargetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where each target stands: mode, last decision, settings, trips, faults.

    Trips and faults are those of the 24 hours up to the last decision. Reads
    the audit log only, so it works while the controller runs, and after.

    Examples:

      tuner status

      tuner status --config tuner.yaml --target deepseek-r1 --json

      tuner status --audit sqlite:///tuner-audit.db
    """
    from tuner.control.status import status_of

    with looking(config, audit) as (store, targets):
        names = names_of(store, targets, target)
        found = [status_of(store, name) for name in names]
    ticks_s = {each.name: each.tick_s for each in targets}
    moved = {each.name: each.move for each in targets}
    if as_json:
        typer.echo(json.dumps([_plain(status) for status in found], indent=2))
        return
    console = Console(highlight=False)
    if not found:
        console.print("the audit log holds no target yet")
        return
    console.print(_table(found, ticks_s, moved))
    for status in found:
        for style, note in _notes(status, ticks_s.get(status.target, USUAL_TICK_S)):
            console.print(Text(f"{status.target}: ", style=style) + Text(note), soft_wrap=True)


def _table(
    found: list[TargetStatus], ticks_s: dict[str, float], moved: dict[str, tuple[str, ...]]
) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        caption="age: of the last decision; trips and faults: of the 24 hours up to it",
        caption_justify="left",
    )
    # Those that may wrap have a least width: else they are what vanishes in a narrow terminal.
    table.add_column("target", overflow="fold", min_width=6)
    table.add_column("mode", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("in force -> wanted", overflow="fold", min_width=8)
    table.add_column("by", no_wrap=True)
    table.add_column("trips", justify="right", no_wrap=True)
    table.add_column("faults", justify="right", no_wrap=True)
    table.add_column("may act", overflow="fold", min_width=3)
    for status in found:
        last = status.last
        if last is None or status.age_s is None:
            table.add_row(Text(status.target), "-", "never", "", "", "", "", _may_act(status))
            continue
        source = str(last.decision.source)
        silent = _silent(status, ticks_s.get(status.target, USUAL_TICK_S))
        faults = status.day.read_faults + status.day.write_faults
        table.add_row(
            Text(status.target),
            last.record.mode,
            Text(age(status.age_s), style="red" if silent else ""),
            _settings(status, moved.get(status.target)),
            Text(source, style=_STYLES.get(source, "")),
            Text(str(status.day.trips), style="yellow" if status.day.trips else ""),
            Text(str(faults), style="yellow" if faults else ""),
            _may_act(status),
        )
    return table


def _settings(status: TargetStatus, moved: tuple[str, ...] | None) -> Text:
    """One line a knob: those that move first; of the others those that may be written."""
    if status.last is None:
        return Text()
    decision = status.last.decision
    lines = [
        Text(f"{knob} {old} -> {new}", style="bold")
        for knob, (old, new) in decision.changes.items()
    ]
    still = [
        f"{knob} {value}"
        for knob, value in decision.settings.items()
        if knob not in decision.changes and (moved is None or knob in moved)
    ]
    if still:
        lines.append(Text("\n".join(still), style="dim" if lines else ""))
    return Text("\n").join(lines) if lines else Text("not known")


def _may_act(status: TargetStatus) -> Text:
    if status.may_not_act is None:
        return Text("yes", style="green")
    return Text("no")


def _silent(status: TargetStatus, tick_s: float) -> bool:
    return status.age_s is not None and status.age_s > SILENT_TICKS * tick_s


def _notes(status: TargetStatus, tick_s: float) -> list[tuple[str, str]]:
    """What a person should know beside the table: (style, sentence)."""
    from tuner.control.promote import day_text

    if status.last is None:
        return [("", "no decision yet; `tuner run --mode shadow` begins to watch it")]
    notes = []
    age_s = status.age_s or 0.0
    if _silent(status, tick_s):
        notes.append(
            ("red", f"silent: the last decision was {age(age_s)} ago; is the controller up?")
        )
    decision = status.last.decision
    if decision.why:
        # A guardrail's word is worth a look; that of a rule at work is not.
        notes.append(("yellow" if decision.verdicts else "", decision.why))
    observation, receipt = status.last.record.observation, status.last.record.receipt
    for fault in (*observation.faults, *(receipt.faults if receipt is not None else ())):
        if str(fault.reason) != "Shadow":
            notes.append(("yellow", f"{fault.where}: {sentence_of(fault)}"))
    # The newest one may be acting right now.
    newest = 1 if receipt is None and not _silent(status, tick_s) else 0
    if status.day.open > newest:
        notes.append(
            (
                "yellow",
                f"{status.day.open} decision{'s' if status.day.open > 1 else ''} without a "
                "receipt: the controller ended between deciding and acting",
            )
        )
    if status.may_not_act is None and status.promotion is not None:
        given = status.promotion
        how = "without evidence" if given.kind == "without_evidence" else "promoted"
        reason = f": {given.reason}" if given.reason else ""
        notes.append(("green", f"may act: {how} by {given.who} on {day_text(given.at_s)}{reason}"))
    elif status.promotion is not None:
        notes.append(("", f"may not act: {status.may_not_act}"))
    return notes


def _plain(status: TargetStatus) -> dict[str, Any]:
    from tuner.control.status import became

    last, promotion = status.last, status.promotion
    given = None
    if promotion is not None:
        given = {
            "kind": str(promotion.kind),
            "at_s": promotion.at_s,
            "who": promotion.who,
            "reason": promotion.reason,
            "policy": promotion.policy,
            "policy_digest": promotion.policy_digest,
            "config_digest": promotion.config_digest,
        }
    return {
        "target": status.target,
        "mode": None if last is None else last.record.mode,
        "age_s": status.age_s,
        "decision": None if last is None else last.id,
        "at_s": None if last is None else last.decision.at_s,
        "policy": None if last is None else last.identity.policy,
        "in_force": None if last is None else dict(last.decision.settings),
        "wanted": None if last is None else dict(last.decision.target),
        "source": None if last is None else str(last.decision.source),
        "why": None if last is None else last.decision.why,
        "became": None if last is None else became(last),
        "day": {
            "ticks": status.day.ticks,
            "trips": status.day.trips,
            "tripped_ticks": status.day.tripped,
            "ticks_with_read_faults": status.day.read_faults,
            "ticks_with_write_faults": status.day.write_faults,
            "moves": status.day.moves,
            "without_receipt": status.day.open,
        },
        "may_act": status.may_not_act is None,
        "may_not_act": status.may_not_act,
        "promotion": given,
    }
