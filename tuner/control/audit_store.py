"""The audit log: every decision with what led to it and what became of it, and who may act.

A decision is two writes: the intent, committed before anything acts, and the receipt after. A row
without a receipt is a controller that ended in between; it is shown so, and never repaired.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Row,
    and_,
    case,
    delete,
    func,
    insert,
    not_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from tuner.control.audit_database import (
    RETRY_S,
    TIMEOUT_S,
    Database,
    claims_table,
    decisions_table,
    promotions_table,
)
from tuner.core.audit import (
    AuditRecord,
    decision_from_json,
    decision_to_json,
    receipt_from_json,
    receipt_to_json,
)
from tuner.core.clock import Clock, WallClock
from tuner.core.decision import Decision, Receipt
from tuner.core.errors import PermanentError, TemporaryError
from tuner.core.faults import Fault, FaultReason
from tuner.core.history import LENGTH, History
from tuner.core.knobs import KnobSpace
from tuner.core.observation import Observation

CHUNK = 256
"""Records read at once: with 200 replicas in each that is 10 MB, whatever the log holds."""


@dataclass(frozen=True)
class RunIdentity:
    """What runs: a decision without it cannot be explained a month later."""

    policy: str
    """Name, or the folder of a bundle."""
    policy_digest: str | None
    """Digest of the bundle; None for a rule, which the configuration describes whole."""
    config_digest: str
    """Digest of the target's configuration."""
    version: str
    """Of tuner."""
    authority: str
    """Who writes replicas: `direct`, `none` in shadow."""


@dataclass(frozen=True)
class StoredDecision:
    """One decision as the log holds it."""

    id: int
    target: str
    identity: RunIdentity
    recorded_at_s: float
    """When the intent was written, on the wall clock."""
    record: AuditRecord

    @property
    def decision(self) -> Decision:
        return self.record.decision


@dataclass(frozen=True)
class Activity:
    """What happened on one target within a span."""

    ticks: int
    tripped: int
    """Ticks whose decision a trip took from the policy."""
    trips: int
    """Uninterrupted runs of such ticks."""
    read_faults: int
    """Ticks with a fault of reading."""
    write_faults: int
    """Ticks with a fault of writing; what shadow mode refuses is none."""
    moves: int
    """Ticks that wanted a knob moved."""
    open: int
    """Intents without a receipt."""


class PromotionKind(StrEnum):
    """What a record says about acting."""

    PROMOTED = "promoted"
    """The evidence passed every gate."""
    WITHOUT_EVIDENCE = "without_evidence"
    """Someone took the responsibility."""
    DEMOTED = "demoted"
    """Back to shadow."""


@dataclass(frozen=True)
class Promotion:
    """One word on whether a target's controller may act. The latest of a target holds."""

    target: str
    at_s: float
    """When, on the wall clock."""
    kind: PromotionKind
    policy: str | None
    policy_digest: str | None
    config_digest: str | None
    """What it was given for; a demotion is for whatever runs."""
    who: str
    """user@host."""
    version: str
    """Of tuner."""
    reason: str = ""
    evidence: Mapping[str, object] | None = None
    """Gates and figures as they were then."""


@dataclass(frozen=True)
class Claim:
    """The right of one process to act on a target, by this audit log."""

    target: str
    holder: str
    """Host, process and a random part: two starts never have the same."""
    lasts_s: float
    """Without a renewal, on the wall clock; then another may take it."""


class ClaimedError(PermanentError):
    """Another process holds the claim on a target: whoever meets this may not write."""


class AuditStore:
    """An open audit log. May be used from several threads; each writer from one."""

    def __init__(self, database: Database, clock: Clock, timeout_s: float) -> None:
        self._database = database
        self._clock = clock
        self._timeout_s = timeout_s
        # SQLite has one writer, and waiting for its lock is polling: threads queue here instead.
        self._turn = threading.Lock()

    @classmethod
    def open(
        cls,
        url: str,
        *,
        read_only: bool = False,
        timeout_s: float = TIMEOUT_S,
        clock: Clock | None = None,
    ) -> AuditStore:
        """Open the log at a SQLAlchemy URL; a new one is made unless `read_only`.

        Args:
            read_only: for commands that only look.
            timeout_s: longest wait for a connection, a lock or an answer.
            clock: tells when records are written; None: the wall clock.

        Raises:
            ConfigError: the URL or what it names cannot be used.
        """
        database = Database(url, read_only=read_only, timeout_s=timeout_s)
        return cls(database, clock or WallClock(), timeout_s)

    @property
    def name(self) -> str:
        """The URL without anything secret."""
        return self._database.name

    def close(self) -> None:
        self._database.close()

    def writer(
        self, target: str, *, identity: RunIdentity, claim: Claim | None = None
    ) -> AuditWriter:
        """Where the loop of one target records; with a claim, only while it is held."""
        return AuditWriter(self, target, identity, claim)

    # Writing ---------------------------------------------------------------------------------

    def add_intent(
        self,
        target: str,
        identity: RunIdentity,
        mode: str,
        observation: Observation,
        decision: Decision,
        *,
        claim: Claim | None = None,
    ) -> int:
        """Commit what is going to be done; its id. A claim is renewed in the same transaction.

        Raises:
            ClaimedError: another process has taken the claim.
            TemporaryError, PermanentError: it is not written, so nothing may act on it.
        """
        intent = {"observation": observation.to_json(), "decision": decision_to_json(decision)}
        proposal = decision.proposal
        log_prob = None if proposal is None else proposal.log_prob
        row = {
            "target": _clean(target),
            "at_s": decision.at_s,
            "recorded_at_s": self._clock.now_s(),
            "mode": mode,
            "policy": _clean(identity.policy),
            "policy_digest": identity.policy_digest,
            "config_digest": identity.config_digest,
            "authority": identity.authority,
            "version": identity.version,
            "source": str(decision.source),
            "sentence": _clean(decision.sentence()),
            "tripped": bool(decision.trips),
            "clamped": bool(decision.clamps),
            "moved": bool(decision.changes),
            "log_prob": log_prob if log_prob is not None and math.isfinite(log_prob) else None,
            "read_faults": len(observation.faults),
            "intent": _dump(intent),
        }
        with self._writing() as connection:
            if claim is not None:
                self._renew(connection, claim)
            added = insert(decisions_table).values(row).returning(decisions_table.c.id)
            return int(connection.execute(added).scalar_one())

    def add_receipt(self, id_: int, receipt: Receipt) -> None:
        """Commit what became of an intent.

        Raises:
            TemporaryError, PermanentError: it is not written; the intent stays without a receipt.
        """
        table = decisions_table
        change = update(table).where(table.c.id == id_)
        with self._writing() as connection:
            result = connection.execute(
                change.values(
                    receipt=_dump(receipt_to_json(receipt)),
                    receipt_at_s=receipt.at_s,
                    write_faults=len(write_faults(receipt)),
                )
            )
        if result.rowcount != 1:
            raise PermanentError(
                f"audit log {self.name} no longer holds decision {id_}, whose receipt was to be "
                "written; was it removed by hand?"
            )

    def add_promotion(self, promotion: Promotion) -> None:
        """Commit a word on whether a target may act."""
        row = {
            "target": _clean(promotion.target),
            "at_s": promotion.at_s,
            "kind": str(promotion.kind),
            "policy": None if promotion.policy is None else _clean(promotion.policy),
            "policy_digest": promotion.policy_digest,
            "config_digest": promotion.config_digest,
            "who": _clean(promotion.who),
            "reason": _clean(promotion.reason),
            "version": promotion.version,
            "evidence": _dump(promotion.evidence),
        }
        with self._writing() as connection:
            connection.execute(insert(promotions_table).values(row))

    def take(self, claim: Claim) -> None:
        """Take a claim, or renew it; one that has run out is taken over.

        Raises:
            ClaimedError: another process holds it; names it and says until when.
            TemporaryError, PermanentError: it is not written, so it is not held.
        """
        with self._writing() as connection:
            self._renew(connection, claim)

    def give_up(self, claim: Claim) -> None:
        """Let the next one in at once; what another has taken over stays with it."""
        table = claims_table
        mine = (table.c.target == _clean(claim.target)) & (table.c.holder == _clean(claim.holder))
        with self._writing() as connection:
            connection.execute(delete(table).where(mine))

    def _renew(self, connection: Connection, claim: Claim) -> None:
        """One statement, so that of two who come at once one finds the other."""
        table, now_s = claims_table, self._clock.now_s()
        row = {
            "target": _clean(claim.target),
            "holder": _clean(claim.holder),
            "renewed_at_s": now_s,
            "lasts_s": claim.lasts_s,
        }
        free = (table.c.holder == row["holder"]) | (table.c.renewed_at_s + table.c.lasts_s < now_s)
        dialect = sqlite if self._database.is_sqlite else postgresql
        wish = dialect.insert(table).values(row)
        wish = wish.on_conflict_do_update(index_elements=[table.c.target], set_=row, where=free)
        if connection.execute(wish.returning(table.c.target)).first() is not None:
            return
        held = connection.execute(select(table).where(table.c.target == row["target"])).one()
        left_s = held.renewed_at_s + held.lasts_s - now_s
        raise ClaimedError(
            f"target '{claim.target}' is steered by another controller ({held.holder}, by audit "
            f"log {self.name}); stop that one, or if it is gone already, start again in "
            f"{max(left_s, 0.0) + 1:.0f} s, when its claim has run out"
        )

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if not self._database.is_sqlite:
            with self._database.connection("written") as connection:
                yield connection
            return
        if not self._turn.acquire(timeout=self._timeout_s):
            raise TemporaryError(
                f"audit log {self.name} cannot be written (other targets have been writing for "
                f"{self._timeout_s:g} s); is its disk slow?",
                delay_s=RETRY_S,
            )
        try:
            with self._database.connection("written") as connection:
                yield connection
        finally:
            self._turn.release()

    # Reading ---------------------------------------------------------------------------------

    def targets(self) -> list[str]:
        """Names of the targets that have decisions or promotions, sorted."""
        decided = select(decisions_table.c.target).distinct()
        promoted = select(promotions_table.c.target).distinct()
        with self._reading() as connection:
            return sorted({*connection.scalars(decided), *connection.scalars(promoted)})

    def decision(self, id_: int) -> StoredDecision | None:
        """One decision; None where the log holds none of that id."""
        found = self._rows(select(decisions_table).where(decisions_table.c.id == id_))
        return self._stored(found[0]) if found else None

    def decisions(
        self, target: str | None = None, *, last: int = LENGTH, mode: str | None = None
    ) -> list[StoredDecision]:
        """The newest decisions, of one target or of all, in one mode or in any; oldest first."""
        table = decisions_table
        query = select(table).order_by(table.c.id.desc()).limit(last)
        if target is not None:
            query = query.where(table.c.target == target)
        if mode is not None:
            query = query.where(table.c.mode == mode)
        return [self._stored(row) for row in reversed(self._rows(query))]

    def each(
        self,
        target: str,
        *,
        mode: str | None = None,
        after_s: float | None = None,
        config_digest: str | None = None,
    ) -> Iterator[StoredDecision]:
        """Every decision on a target, oldest first, read in chunks.

        Args:
            target: its name.
            mode: only those taken in this mode.
            after_s: only later ones, on the controller's clock.
            config_digest: only those under this configuration.
        """
        table = decisions_table
        query = select(table).where(*_about(target, mode, after_s, config_digest))
        query = query.order_by(table.c.id).limit(CHUNK)
        after_id = 0
        while rows := self._rows(query.where(table.c.id > after_id)):
            yield from (self._stored(row) for row in rows)
            after_id = rows[-1].id

    def count(self, target: str, *, mode: str | None = None, after_s: float | None = None) -> int:
        """Decisions that `each` would give."""
        query = select(func.count()).where(*_about(target, mode, after_s, None))
        return int(self._rows(query)[0][0])

    def activity(self, target: str, *, after_s: float) -> Activity:
        """What happened on a target since `after_s`, on its controller's clock."""
        table = decisions_table
        before = func.lag(table.c.tripped).over(order_by=table.c.id)
        ticks = (
            select(table, func.coalesce(before, False).label("tripped_before"))
            .where(*_about(target, None, after_s, None))
            .subquery()
        )

        def with_(condition: ColumnElement[bool]) -> ColumnElement[int]:
            return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)

        query = select(
            func.count(),
            with_(ticks.c.tripped),
            with_(and_(ticks.c.tripped, not_(ticks.c.tripped_before))),
            with_(ticks.c.read_faults > 0),
            with_(ticks.c.write_faults > 0),
            with_(ticks.c.moved),
            with_(ticks.c.receipt.is_(None)),
        ).select_from(ticks)
        return Activity(*(int(value) for value in self._rows(query)[0]))

    def promotion(self, target: str) -> Promotion | None:
        """The latest word on a target; None where nobody has spoken."""
        found = self.promotions(target, last=1)
        return found[0] if found else None

    def promotions(self, target: str, *, last: int = LENGTH) -> list[Promotion]:
        """The newest words on a target, oldest first."""
        table = promotions_table
        query = select(table).where(table.c.target == target)
        rows = self._rows(query.order_by(table.c.id.desc()).limit(last))
        return [_promotion(row) for row in reversed(rows)]

    def history(
        self,
        target: str,
        knobs: KnobSpace,
        *,
        policy_digest: str | None,
        after_s: float,
        config_digest: str | None = None,
    ) -> History:
        """What the loop of a target would hold now, had it not been restarted.

        Observations and decisions are facts about the target, whoever decided; they are taken from
        the newest records as far as their knobs fit. A policy's memory means something to the very
        same policy only.

        Args:
            target: its name.
            knobs: of the target now.
            policy_digest: of the policy now; only records of the same add to its memory.
            after_s: older records say nothing about now, on the controller's clock.
            config_digest: of the configuration now; where it is given, records under another add
                to no memory, since windows may have other lengths.
        """
        fitting: list[StoredDecision] = []
        for stored in reversed(self.decisions(target, last=LENGTH)):
            if stored.decision.at_s <= after_s or not _fits(stored, knobs):
                break
            fitting.append(stored)
        history = History(knobs)
        for stored in reversed(fitting):
            identity = stored.identity
            same_config = config_digest in (None, identity.config_digest)
            history = history.observed(stored.record.observation).decided(stored.decision)
            if not same_config:
                history = replace(history, memory=(), fallback_memory=())
            elif identity.policy_digest != policy_digest:
                history = replace(history, memory=())
        return history

    def _rows(self, query: Executable) -> list[Row[Any]]:
        with self._reading() as connection:
            return list(connection.execute(query))

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._database.connection("read") as connection:
            yield connection

    def _stored(self, row: Row[Any]) -> StoredDecision:
        try:
            intent = json.loads(row.intent)
            receipt = None if row.receipt is None else receipt_from_json(json.loads(row.receipt))
            record = AuditRecord(
                mode=row.mode,
                observation=Observation.from_json(intent["observation"]),
                decision=decision_from_json(intent["decision"]),
                receipt=receipt,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentError(
                f"audit log {self.name}: decision {row.id} cannot be read "
                f"({type(error).__name__}: {error}); was it changed by hand, or written by a newer "
                "tuner?"
            ) from error
        return StoredDecision(
            id=row.id,
            target=row.target,
            identity=RunIdentity(
                policy=row.policy,
                policy_digest=row.policy_digest,
                config_digest=row.config_digest,
                version=row.version,
                authority=row.authority,
            ),
            recorded_at_s=row.recorded_at_s,
            record=record,
        )


class AuditWriter:
    """The audit of one target's loop, as `tuner.core.protocols.Audit`."""

    def __init__(
        self, store: AuditStore, target: str, identity: RunIdentity, claim: Claim | None = None
    ) -> None:
        self._store = store
        self._target = target
        self._identity = identity
        self._claim = claim
        self.last_id: int | None = None
        """Id of the last intent that was written; None before the first, and after one that could
        not be written."""

    def intent(self, mode: str, observation: Observation, decision: Decision) -> None:
        """Commit the intent; raises as `AuditStore.add_intent`, and then nothing may act."""
        self.last_id = None
        self.last_id = self._store.add_intent(
            self._target, self._identity, mode, observation, decision, claim=self._claim
        )

    def receipt(self, decision: Decision, receipt: Receipt) -> None:
        """Commit the receipt of the last intent; raises as `AuditStore.add_receipt`."""
        if self.last_id is None:
            raise ValueError(f"a receipt at {receipt.at_s} s without an intent before it")
        self._store.add_receipt(self.last_id, receipt)


def write_faults(receipt: Receipt) -> tuple[Fault, ...]:
    """Faults of writing; that shadow mode refuses is its job."""
    return tuple(fault for fault in receipt.faults if fault.reason is not FaultReason.SHADOW)


def _about(
    target: str, mode: str | None, after_s: float | None, config_digest: str | None
) -> list[ColumnElement[bool]]:
    table = decisions_table
    conditions = [table.c.target == target]
    if mode is not None:
        conditions.append(table.c.mode == mode)
    if after_s is not None:
        conditions.append(table.c.at_s > after_s)
    if config_digest is not None:
        conditions.append(table.c.config_digest == config_digest)
    return conditions


def _fits(stored: StoredDecision, knobs: KnobSpace) -> bool:
    """Whether a record is about a target with these knobs, and about no other knob."""
    decision = stored.decision
    proposals = [p.settings for p in (decision.proposal, decision.fallback) if p is not None]
    named = {name for part in (decision.settings, decision.target, *proposals) for name in part}
    return named <= set(knobs.names)


def _promotion(row: Row[Any]) -> Promotion:
    return Promotion(
        target=row.target,
        at_s=row.at_s,
        kind=PromotionKind(row.kind),
        policy=row.policy,
        policy_digest=row.policy_digest,
        config_digest=row.config_digest,
        who=row.who,
        version=row.version,
        reason=row.reason,
        evidence=json.loads(row.evidence),
    )


def _dump(value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        # A source gave a number that is none. Losing it is better than losing the decision.
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: object) -> object:
    """The same with null for every number that is none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def _clean(text: str) -> str:
    """Text that every database takes: no NUL, no half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
