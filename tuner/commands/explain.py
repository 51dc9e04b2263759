"""`tuner explain`: what was decided, by whom, why, and what became of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tuner.commands.audit_log import (
    AuditOption,
    ConfigOption,
    JsonOption,
    TargetOption,
    looking,
    moment,
    names_of,
    sentence_of,
)
from tuner.core.figures import figure

if TYPE_CHECKING:
    from tuner.control.audit_store import StoredDecision
    from tuner.core.decision import Decision
    from tuner.core.observation import Observation

FEW = 20
"""Decisions that are shown: one screen."""

REPLICAS = 8
"""Replicas that are listed one by one without --full."""

_STYLES = {"policy": "green", "fallback": "yellow", "hold": "red"}


def command(
    decision: Annotated[
        int | None, typer.Argument(metavar="[ID]", help="One decision, in full.", min=1)
    ] = None,
    last: Annotated[int | None, typer.Option(help="So many decisions. (default 20)", min=1)] = None,
    target: TargetOption = None,
    full: Annotated[
        bool, typer.Option("--full", help="Each in full, every replica and memory included.")
    ] = False,
    config: ConfigOption = None,
    audit: AuditOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain decisions: one line each, or one of them in full.

    A line says when (on the controller's clock, UTC), from -> to, who decided,
    what became of it, and why: what the guardrails said, or else the numbers of
    the rule that decided. An ID shows everything behind that decision: what was
    seen and how old it was, what policy and fallback wanted and why, what the
    guardrails said, and what was written.

    Examples:

      tuner explain

      tuner explain 1234

      tuner explain --last 5 --target deepseek-r1 --json
    """
    from tuner.core.errors import ConfigError

    if decision is not None and (last is not None or target is not None):
        raise ConfigError("an ID names one decision: leave out --last and --target")
    with looking(config, audit) as (store, targets):
        if decision is not None:
            one = store.decision(decision)
            if one is None:
                raise ConfigError(
                    f"the audit log holds no decision {decision}; `tuner explain` lists them"
                )
            found = [one]
        else:
            if target is not None:
                names_of(store, targets, target)
            found = store.decisions(target, last=last or FEW)
    if as_json:
        plain = [_plain(each) for each in found]
        typer.echo(json.dumps(plain[0] if decision is not None else plain, indent=2))
        return
    console = Console(highlight=False)
    if not found:
        console.print("no decision yet; `tuner run --mode shadow` begins to watch")
    elif decision is not None or full:
        for place, each in enumerate(found):
            if place:
                console.print()
            _show(each, console, full=full)
    else:
        _list(found, console, several=len({each.target for each in found}) > 1)


# One line each -----------------------------------------------------------------------------


def _list(found: list[StoredDecision], console: Console, *, several: bool) -> None:
    days = {moment(each.decision.at_s)[:10] for each in found}
    if not console.is_terminal:
        # A pipe gets one whole line each, however long.
        for each in found:
            place = f"{each.target}  " if several else ""
            line = Text(f"{each.id}  {moment(each.decision.at_s)}  {place}") + _story(each)
            console.print(line, soft_wrap=True)
        return
    # The date stands in the head where all are of one day: a line has no room to spare.
    begin, when = (11, next(iter(days))) if len(days) == 1 else (0, "time (UTC)")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", justify="right", no_wrap=True)
    table.add_column(when, no_wrap=True)
    if several:
        table.add_column("target", overflow="fold", max_width=console.width // 4)
    table.add_column("decision")
    for each in found:
        cells = [Text(each.target)] if several else []
        table.add_row(str(each.id), moment(each.decision.at_s)[begin:], *cells, _story(each))
    console.print(table)


def _story(stored: StoredDecision) -> Text:
    """From -> to, who, what became of it, and why."""
    from tuner.control.status import became, moves

    decision, source = stored.decision, str(stored.decision.source)
    line = Text(moves(decision), style="bold" if decision.changes else "")
    story = Text.assemble(line, " by ", (source, _STYLES.get(source, "")), f": {became(stored)}")
    return story.append(f"; {decision.why}") if decision.why else story


# One in full -------------------------------------------------------------------------------


def _show(stored: StoredDecision, console: Console, *, full: bool) -> None:
    from tuner.control.status import became, moves

    decision = stored.decision
    source = str(decision.source)
    console.print(
        Text(f"decision {stored.id}", style="bold")
        + Text(f" on {stored.target}, {moment(decision.at_s)} UTC, mode {stored.record.mode}")
    )
    console.print(
        Text("  ")
        + Text(moves(decision), style="bold")
        + Text(" by ")
        + Text(source, style=_STYLES.get(source, ""))
        + Text(f": {became(stored)}")
    )
    _section(console, "seen", _seen(stored.record.observation, full=full))
    _section(console, "wanted", _wanted(decision))
    _section(console, "guardrails", _verdicts(decision))
    _section(console, "written", _written(stored))
    _section(console, "who", _pairs(_identity(stored, full=full)))
    if full:
        memories = {
            name: " ".join("." if value != value else f"{value:g}" for value in proposal.memory)
            for name, proposal in (("policy", decision.proposal), ("fallback", decision.fallback))
            if proposal is not None
        }
        _section(console, "memory", _pairs(memories))


def _section(console: Console, title: str, content: Any) -> None:
    console.print(Text(title, style="bold"))
    for part in content if isinstance(content, list) else [content]:
        console.print(Padding(part, (0, 0, 0, 2), expand=False))


def _seen(seen: Observation, *, full: bool) -> list[Any]:
    from tuner.core.observation import FIELDS

    age = "no sample at all" if seen.age_s is None else f"newest sample {seen.age_s:.3g} s old"
    parts: list[Any] = [Text(f"window of {seen.window_s:g} s, {age}")]
    table = _table("field", "value", "unit", "age", "")
    missing = []
    for spec in FIELDS:
        value = getattr(seen, spec.name)
        if value is None:
            missing.append(spec.name)
            continue
        age_s = seen.ages_s.get(spec.name, seen.age_s)
        table.add_row(
            spec.name,
            figure(value),
            spec.unit,
            "" if age_s is None else f"{age_s:.3g} s",
            Text("estimate", style="yellow") if spec.name in seen.estimates else "",
        )
    parts.append(table)
    if missing:
        parts.append(Text(f"not measured: {', '.join(missing)}", style="dim"))
    parts.extend(_replicas(seen, full=full))
    parts.extend(
        Text(f"{fault.where}: {fault.reason}: {sentence_of(fault)}", style="yellow")
        for fault in seen.faults
    )
    return parts


def _replicas(seen: Observation, *, full: bool) -> Iterator[Any]:
    if not seen.replicas:
        return
    if len(seen.replicas) > REPLICAS and not full:
        states = Counter(str(replica.state) for replica in seen.replicas)
        counts = ", ".join(f"{n} {state}" for state, n in states.items())
        yield Text(f"{len(seen.replicas)} replicas: {counts} (--full lists them)")
        return
    table = _table("replica", "state", "age", "running", "queue", "KV used")
    for replica in seen.replicas:
        used = "" if replica.kv_cache_usage is None else f"{100 * replica.kv_cache_usage:.0f} %"
        table.add_row(
            Text(replica.name),
            str(replica.state),
            f"{replica.age_s:.0f} s",
            figure(replica.running),
            figure(replica.queue_depth),
            used,
        )
    yield table


def _wanted(decision: Decision) -> list[Any]:
    """Before the guardrails, and after."""
    proposals: dict[str, Mapping[str, float]] = {
        "policy": {} if decision.proposal is None else decision.proposal.settings,
        "fallback": {} if decision.fallback is None else decision.fallback.settings,
    }
    knobs = dict.fromkeys(
        [*decision.settings, *decision.target, *(k for p in proposals.values() for k in p)]
    )
    table = _table("knob", "in force", "policy wants", "fallback wants", "decided")
    for knob in knobs:
        old, new = decision.settings.get(knob), decision.target.get(knob)
        table.add_row(
            knob,
            figure(old),
            figure(proposals["policy"].get(knob)),
            figure(proposals["fallback"].get(knob)),
            Text(figure(new), style="bold" if old != new else ""),
        )
    parts: list[Any] = [table]
    for name, proposal in (("policy", decision.proposal), ("fallback", decision.fallback)):
        if proposal is None:
            parts.append(Text(f"the {name} gave no usable answer", style="yellow"))
            continue
        if proposal.raw is not None:
            parts.append(Text(f"replicas by the {name}'s rule alone: {proposal.raw:g}"))
        if proposal.why:
            parts.append(Text(f"the {name}'s why: {proposal.why}"))
    if decision.proposal is not None:
        drawn = decision.proposal.log_prob
        chance = "none, the policy is deterministic" if drawn is None else f"{drawn:.4g}"
        parts.append(Text(f"log-probability of the action: {chance}"))
    return parts


def _verdicts(decision: Decision) -> Any:
    if not decision.verdicts:
        return Text("all quiet")
    table = _table("guardrail", "reason", "what it said")
    for verdict in decision.verdicts:
        table.add_row(verdict.guardrail, verdict.reason.name, Text(verdict.sentence))
    return table


def _written(stored: StoredDecision) -> list[Any]:
    receipt = stored.record.receipt
    if receipt is None:
        return [
            Text(
                "no receipt: the controller is acting right now, or ended between deciding and "
                "acting",
                style="yellow",
            )
        ]
    applied = ", ".join(f"{knob} {value}" for knob, value in receipt.applied.items())
    took_s = receipt.at_s - stored.decision.at_s
    parts: list[Any] = [Text(f"{applied or 'nothing'}, {took_s:.3g} s after the look")]
    parts.extend(
        Text(
            f"{fault.where}: {fault.reason}: {sentence_of(fault)}",
            style="" if str(fault.reason) == "Shadow" else "yellow",
        )
        for fault in receipt.faults
    )
    return parts


def _identity(stored: StoredDecision, *, full: bool) -> dict[str, str]:
    identity = stored.identity
    digest = identity.policy_digest or "none: a rule, which the configuration describes"
    short = slice(None) if full else slice(12)
    return {
        "policy": identity.policy,
        "policy digest": digest[short] if identity.policy_digest else digest,
        "configuration": identity.config_digest[short],
        "authority": identity.authority,
        "tuner": identity.version,
    }


def _pairs(values: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in values.items():
        grid.add_row(key, Text(value))
    return grid


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    numeric = {"value", "age", "running", "queue", "KV used", "in force", "decided"}
    for head in heads:
        right = head in numeric or head.endswith("wants")
        table.add_column(head, justify="right" if right else "left", overflow="fold")
    return table


def _plain(stored: StoredDecision) -> dict[str, Any]:
    from tuner.control.status import became

    return {
        "id": stored.id,
        "target": stored.target,
        **asdict(stored.identity),
        "recorded_at_s": stored.recorded_at_s,
        "sentence": stored.decision.sentence(),
        "became": became(stored),
        **stored.record.to_json(),
    }
