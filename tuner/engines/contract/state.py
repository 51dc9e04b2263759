"""The server side of `/v1/runtime_config`: who may change which knob when, and for how long.

Standard library only, for Python 3.10 up: the vLLM plugin and the sidecar ship this folder without
the rest of tuner. It knows no transport (`http.py` has one) and no engine: its owner gives
it `apply` (bring values about) and `status` (how the engine stands).

What a request meets, in this order:

    401 403   no token, wrong token
    404 405   no such path, not this method
    400       not JSON, unknown key, unknown knob, not an integer, out of range: never clamped
    501       a knob that is known and cannot be moved while the engine runs
    428       no If-Match
    503       the engine does not answer, is paused or asleep, or an earlier change is unsettled
    409       If-Match or epoch is behind; the body carries the current state
    429       too soon after the last change, or another change is under way; Retry-After says when
    502       the engine refused: nothing was changed
    504       the engine's answer was lost: the values before are put back, again and again until it
              confirms them
    200 202   done; something that takes long was started, and GET's revision moves when it is done

`revision` grows by 1 whenever a value or a base changes; renewing a temporary value leaves it.
Going back to the base at the end of a time-to-live needs no caller: `start()` runs a thread for it.
"""

from __future__ import annotations

import hmac
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace

from .request import PATCH_KEYS, ROLLBACK_KEYS, later, route_of, sentence_of, wish_of
from .values import (
    PATH,
    ROLLBACK,
    VERSION,
    AuditLine,
    Change,
    EngineError,
    Held,
    Knob,
    RefusalError,
    RefusedByEngineError,
    Response,
    Source,
    Status,
    Wish,
)

REMEMBERED = 256
"""Results kept for repeated `request_id`s, newest first: hours of one controller's changes."""
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 30.0
"""Wait between attempts to bring an engine back that does not do it: doubling, in these bounds."""


class Contract:
    """One process's run-time configuration.

    Args:
        knobs: everything the engine knows; what cannot be moved has actuation `unsupported`.
        apply: brings values about, all or none. Raises RefusedByEngineError where nothing was
            changed and EngineError where that is not sure. Called from any thread, one call at a
            time; must come back in bounded time.
        status: how the engine stands. Raises EngineError. As above, but any number at a time.
        engine, engine_version, model: what answers, for GET.
        token: gives the bearer token anew for each request (a mounted Secret rotates); raises
            OSError or ValueError where it has none. None: no token is asked for, which is for
            loopback only.
        min_interval_s: shortest time between two changes that reach the engine. Renewing, rolling
            back and the end of a time-to-live are exempt: the way back never waits.
        audit: takes one line per change.
        clock: seconds, monotonic.
        new_instance_id: for this process, and again whenever the engine has started anew.
    """

    def __init__(
        self,
        knobs: Mapping[str, Knob],
        apply: Callable[[Mapping[str, int]], None],
        status: Callable[[], Status],
        *,
        engine: str,
        engine_version: str,
        model: str,
        token: Callable[[], str] | None,
        min_interval_s: float = 1.0,
        audit: Callable[[AuditLine], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
        new_instance_id: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._apply = apply
        self._status = status
        self._about = {"engine": engine, "engine_version": engine_version, "model": model}
        self._token = token
        self._min_interval_s = min_interval_s
        self._audit = audit
        self._clock = clock
        self._new_instance_id = new_instance_id

        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

        self._busy = False
        self._failures = 0
        self._last_failure: str | None = None
        self._epoch: int | None = None
        self._last_change_at = -math.inf
        self._begin(knobs)

    @property
    def guarded(self) -> bool:
        """Whether requests need a token."""
        return self._token is not None

    @property
    def values(self) -> dict[str, int]:
        """Knob -> value in force, as last confirmed."""
        with self._lock:
            return {name: held.value for name, held in self._held.items()}

    def handle(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        peer: str = "",
    ) -> Response:
        """The answer to one request.

        Args:
            headers: names in any case.
            peer: where it came from, for the audit line.
        """
        lowered = {name.lower(): value for name, value in headers.items()}
        try:
            self._authorize(lowered)
            route = route_of(method, path.split("?", 1)[0])
            if self._thread is None:
                self.expire()
            if route == "read":
                return self._read()
            tag = lowered.get("if-match")
            who = " ".join(word for word in (peer, lowered.get("user-agent", "")) if word)
            if route == "patch":
                return self._patch(tag, body, who)
            return self._rollback(tag, body, who)
        except RefusalError as refusal:
            return refusal.response
        except EngineError as trouble:
            return RefusalError(503, f"{trouble}; wait and try again").response

    def expire(self) -> float | None:
        """Do what the time asks for: end temporary values, put back what is unsettled.

        Returns:
            Seconds until there is something to do; None: nothing is in sight.
        """
        with self._lock:
            now = self._clock()
            if self._busy:
                return None  # whoever is busy wakes the thread when done
            due = {
                n for n, h in self._held.items() if h.expires_at is not None and h.expires_at <= now
            }
            names = due | self._unsettled
            if not names:
                return self._next_due_s(now)
            if now < self._retry_at:
                return self._retry_at - now
            target = {
                n: h.base if n in due else h.value for n, h in self._held.items() if n in names
            }
            send = {
                name: value
                for name, value in target.items()
                if name in self._unsettled or value != self._held[name].value
            }
            self._busy = True
        self._bring_back(send, frozenset(due))
        with self._lock:
            return self._next_due_s(self._clock())

    def start(self) -> None:
        """Run `expire` by itself from now on, in a thread that ends with `close` or the process."""
        self._thread = threading.Thread(target=self._watch, name="tuner-ttl", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; values stay as they are."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)

    def release(self) -> None:
        """End every temporary value now: for an owner that goes while its engine runs on. A change
        under way is waited for."""
        while True:
            self._wake.clear()
            with self._lock:
                if not self._busy:
                    self._end_now()
                    break
            self._wake.wait(LAST_RETRY_S)
        self.expire()

    def _end_now(self) -> None:
        now = self._clock()
        self._retry_at = -math.inf
        for name, held in self._held.items():
            if held.expires_at is not None:
                self._held[name] = replace(held, expires_at=now)

    # Reading.

    def _read(self) -> Response:
        status = self._observe()
        with self._lock:
            return Response(200, {"ETag": self._etag()}, self._state_json(status))

    def _observe(self) -> Status:
        """The engine's status; a new instance begins where it holds other values than were set."""
        with self._lock:
            before = (self._instance_id, self._changes)
        status = self._status()
        with self._lock:
            quiet = not self._busy
            same = before == (self._instance_id, self._changes)
            if status.knobs is not None and quiet and same and self._differs(status.knobs):
                self._begin(status.knobs)
        return status

    def _differs(self, found: Mapping[str, Knob]) -> bool:
        """Values that are unsettled do not count: they are being put back. Their range does: an
        engine started anew with a lower ceiling would refuse them for ever."""
        held = {name: replace(h.spec, value=h.value) for name, h in self._held.items()}
        seen = {
            name: replace(knob, value=held[name].value) if name in self._unsettled else knob
            for name, knob in found.items()
        }
        return held != seen

    def _begin(self, knobs: Mapping[str, Knob]) -> None:
        now = self._clock()
        self._held = {name: Held.at_start(spec, now) for name, spec in knobs.items()}
        self._instance_id = self._new_instance_id()
        self._revision = 0
        self._changes = 0
        self._unsettled: frozenset[str] = frozenset()
        self._retry_at = -math.inf
        self._retry_s = FIRST_RETRY_S
        self._undo: dict[str, Held] | None = None
        self._done: OrderedDict[str, tuple[str, Response]] = OrderedDict()

    def _etag(self) -> str:
        return f'"{self._instance_id}:{self._revision}"'

    def _state_json(self, status: Status | None) -> dict[str, object]:
        now = self._clock()
        seen = status or Status()
        body: dict[str, object] = {
            "contract": VERSION,
            **self._about,
            "instance_id": self._instance_id,
            "revision": self._revision,
            "paused": seen.paused,
            "sleeping": seen.sleeping,
            "draining": seen.draining,
            "running": seen.running,
            "waiting": seen.waiting,
            "knobs": {name: held.to_json(now) for name, held in self._held.items()},
            "changing": self._busy,
            "unsettled": sorted(self._unsettled),
            "failures": self._failures,
            "last_failure": self._last_failure,
        }
        if "batch_size" in self._held:
            # The names of the draft in vllm-project/vllm, pull request 54816.
            body["max_num_running_seqs"] = self._held["batch_size"].value
            body["max_num_seqs"] = self._held["batch_size"].spec.high
        return body

    # Changing.

    def _patch(self, tag: str | None, body: bytes, who: str) -> Response:
        wish = wish_of(PATH, body, PATCH_KEYS)
        if not wish.knobs:
            raise RefusalError(400, 'no knob given; send {"knobs": {"batch_size": 16}}')
        with self._lock:
            wanted = self._checked(wish.knobs)
        self._need_tag(tag)
        repeated = self._repeated(wish)
        if repeated is not None:
            return repeated
        status = self._observe()
        with self._lock:
            self._check_order(tag, wish, status)
            self._check_ready(status)
            change = self._patch_change(wish, wanted, who)
            return self._carry_out(change, status, spaced=True)

    def _rollback(self, tag: str | None, body: bytes, who: str) -> Response:
        wish = wish_of(ROLLBACK, body, ROLLBACK_KEYS)
        self._need_tag(tag)
        repeated = self._repeated(wish)
        if repeated is not None:
            return repeated
        status = self._observe()
        with self._lock:
            self._check_order(tag, wish, status)
            self._check_ready(status)
            if self._undo is None:
                raise self._conflict("there is no change to take back", status)
            change = Change(wish, "rollback", who, self._before(self._undo))
            return self._carry_out(change, status, spaced=False)

    def _before(self, undo: Mapping[str, Held]) -> dict[str, tuple[int, int, float | None]]:
        """As it was; a temporary value whose time has passed since then is its base."""
        now = self._clock()
        return {
            name: (held.base, held.base, None)
            if held.expires_at is not None and held.expires_at <= now
            else (held.value, held.base, held.expires_at)
            for name, held in undo.items()
        }

    def _patch_change(self, wish: Wish, wanted: Mapping[str, int], who: str) -> Change:
        return Change(
            wish,
            "patch",
            who,
            {
                name: (value, value if wish.ttl_s is None else self._held[name].base, wish.ttl_s)
                for name, value in wanted.items()
            },
        )

    def _carry_out(self, change: Change, status: Status, *, spaced: bool) -> Response:
        """Called with the lock held, and gives it up while the engine works."""
        moves = {n: v for n, (v, _, _) in change.after.items() if v != self._held[n].value}
        if change.wish.dry_run:
            return self._answer(200, change, status, self._held)
        if self._busy:
            raise later(1.0, "another change is under way")
        if not moves:
            before, revision = dict(self._held), self._revision
            self._commit(change)
            if self._revision != revision:
                same = {name: self._held[name].value for name in change.after}
                self._log(change.source, change.who, same, same, "applied", change.wish)
            return self._remember(change, self._answer(200, change, status, before))
        left_s = self._last_change_at + self._min_interval_s - self._clock()
        if spaced and left_s > 0:
            raise later(left_s, f"changes must be {self._min_interval_s:g} s apart")
        self._busy = True
        if all(self._held[name].spec.prompt for name in moves):
            return self._hot(change, moves, status)
        answer = self._remember(change, self._answer(202, change, status, self._held))
        threading.Thread(
            target=self._slow, args=(change, moves), name="tuner-reload", daemon=True
        ).start()
        return answer

    def _hot(self, change: Change, moves: Mapping[str, int], status: Status) -> Response:
        before = dict(self._held)
        try:
            self._move(change, moves)
        except RefusedByEngineError as refused:
            raise RefusalError(502, f"the engine refused: {refused}; nothing was changed") from None
        except EngineError as trouble:
            raise RefusalError(
                504, f"{trouble}; the values before are put back until the engine confirms them"
            ) from None
        return self._remember(change, self._answer(200, change, status, before))

    def _slow(self, change: Change, moves: Mapping[str, int]) -> None:
        with self._lock:
            try:
                self._move(change, moves)
            except EngineError:
                # Told by audit line and GET; the answer went out long ago. The same id may retry.
                if change.wish.request_id is not None:
                    self._done.pop(change.wish.request_id, None)

    def _move(self, change: Change, moves: Mapping[str, int]) -> None:
        """Send, then write down what is so now. Lock held and `busy` set by the caller.

        Raises:
            EngineError: not done; what may be half done is marked unsettled.
        """
        before = {name: self._held[name].value for name in moves}
        refused = False
        result = "the engine call broke off"
        try:
            self._send(moves)
            result = "applied"
        except RefusedByEngineError as trouble:
            refused, result = True, str(trouble)
            raise
        except EngineError as trouble:
            result = str(trouble)
            raise
        finally:
            self._busy = False
            if result == "applied":
                self._commit(change)
                self._last_change_at = self._clock()
            else:
                self._failed(result)
                if not refused:
                    self._unsettled |= frozenset(moves)
            self._log(change.source, change.who, before, moves, result, change.wish)
            self._wake.set()

    def _send(self, values: Mapping[str, int]) -> None:
        """`apply` without the lock: reading goes on meanwhile."""
        self._changes += 1
        self._lock.release()
        try:
            self._apply(values)
        finally:
            self._lock.acquire()

    def _commit(self, change: Change) -> None:
        now = self._clock()
        moved = {}
        for name, (value, base, ends) in change.after.items():
            if ends is not None and change.source == "patch":
                ends = now + ends
            moved[name] = self._held[name].moved(value, base, ends, change.source, now)
        news = any(
            (held.value, held.base) != (self._held[name].value, self._held[name].base)
            for name, held in moved.items()
        )
        if news:
            self._undo = {name: self._held[name] for name in moved}
            self._revision += 1
            self._changes += 1
        self._held.update(moved)
        self._wake.set()

    def _bring_back(self, send: Mapping[str, int], due: frozenset[str]) -> None:
        """End the values in `due`, sending `send` first. `busy` is set by the caller."""
        with self._lock:
            before = {name: self._held[name].value for name in send}
            first = self._retry_s == FIRST_RETRY_S
            unsure = frozenset(send)
            result = "the engine call broke off"
            try:
                if send:
                    self._send(send)
                result = "applied"
            except RefusedByEngineError as trouble:
                unsure, result = self._unsettled, str(trouble)  # as it was, and tried again
            except EngineError as trouble:
                result = str(trouble)
            finally:
                self._busy = False
                if result == "applied":
                    self._ended(due)
                else:
                    self._not_yet(result, unsure)
                if send and (first or result == "applied"):
                    self._log("ttl", "contract", before, send, result, Wish(reason="way back"))
                self._wake.set()

    def _ended(self, due: frozenset[str]) -> None:
        now = self._clock()
        self._unsettled = frozenset()
        self._retry_at = -math.inf
        self._retry_s = FIRST_RETRY_S
        if any(self._held[name].value != self._held[name].base for name in due):
            self._revision += 1
            self._changes += 1
            self._undo = None
        for name in due:
            held = self._held[name]
            self._held[name] = held.moved(held.base, held.base, None, "ttl", now)

    def _not_yet(self, sentence: str, unsettled: frozenset[str]) -> None:
        self._failed(sentence)
        self._unsettled = unsettled
        self._retry_at = self._clock() + self._retry_s
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _failed(self, sentence: str) -> None:
        self._failures += 1
        self._last_failure = sentence

    def _next_due_s(self, now: float) -> float | None:
        if self._unsettled:
            return max(self._retry_at - now, 0.0)
        ends = [held.expires_at for held in self._held.values() if held.expires_at is not None]
        if not ends:
            return None
        return max(min(ends), self._retry_at) - now

    def _watch(self) -> None:
        while not self._closing:
            self._wake.clear()
            try:
                wait_s = self.expire()
            except Exception as trouble:  # the outermost guard: this thread is the dead-man switch
                with self._lock:
                    self._failed(f"{type(trouble).__name__}: {trouble}")
                wait_s = FIRST_RETRY_S
            self._wake.wait(None if wait_s is None else max(wait_s, 0.0))

    # Checks. The lock is held.

    def _authorize(self, headers: Mapping[str, str]) -> None:
        if self._token is None:
            return
        try:
            token = self._token()
        except (OSError, ValueError) as trouble:
            raise RefusalError(503, f"this side has no token to compare with: {trouble}") from None
        scheme, _, found = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not found.strip():
            raise RefusalError(
                401,
                "no token; send 'Authorization: Bearer TOKEN'",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not hmac.compare_digest(found.strip().encode(), token.encode()):
            raise RefusalError(403, "wrong token")

    def _need_tag(self, tag: str | None) -> None:
        if tag is None:
            raise RefusalError(428, "If-Match is missing; send the ETag of the last GET")

    def _checked(self, knobs: Mapping[str, object]) -> dict[str, int]:
        wrong: list[dict[str, object]] = []
        unmovable: list[str] = []
        wanted: dict[str, int] = {}
        for name, value in knobs.items():
            held = self._held.get(name)
            if held is None:
                wrong.append({"knob": name, "found": name, "allowed": sorted(self._held)})
            elif held.spec.actuation == "unsupported":
                unmovable.append(name)
            elif isinstance(value, bool) or not isinstance(value, int):
                wrong.append({"knob": name, "found": value, "allowed": "an integer"})
            elif not held.spec.low <= value <= held.spec.high:
                allowed = [held.spec.low, held.spec.high]
                wrong.append({"knob": name, "found": value, "allowed": allowed})
            else:
                wanted[name] = value
        if wrong:
            raise RefusalError(400, "; ".join(map(sentence_of, wrong)), details=wrong)
        if unmovable:
            raise RefusalError(501, f"{', '.join(unmovable)}: not movable while the engine runs")
        return wanted

    def _check_order(self, tag: str | None, wish: Wish, status: Status) -> None:
        if wish.epoch is not None and self._epoch is not None and wish.epoch < self._epoch:
            raise self._conflict(
                f"epoch {wish.epoch} is behind {self._epoch}: another writer has taken over", status
            )
        if wish.epoch is not None and not wish.dry_run:
            self._epoch = wish.epoch
        if tag != self._etag():
            raise self._conflict(f"If-Match {tag} is behind {self._etag()}", status)

    def _conflict(self, sentence: str, status: Status) -> RefusalError:
        return RefusalError(
            409,
            f"{sentence}; read and decide again",
            headers={"ETag": self._etag()},
            state=self._state_json(status),
        )

    def _check_ready(self, status: Status) -> None:
        why = "paused" if status.paused else "asleep" if status.sleeping else None
        if why is not None:
            raise RefusalError(503, f"the engine is {why}; wait and try again")
        if self._unsettled:
            raise RefusalError(
                503,
                f"an earlier change of {', '.join(sorted(self._unsettled))} is unsettled "
                f"({self._last_failure}); wait until the values before are back",
            )

    # Answers. The lock is held.

    def _answer(
        self, code: int, change: Change, status: Status, before: Mapping[str, Held]
    ) -> Response:
        applied = {name: value for name, (value, _, _) in change.after.items()}
        now = self._clock()
        ends = [end for _, _, end in change.after.values() if end is not None]
        if change.source == "rollback":
            ends = [end - now for end in ends]
        cap = applied.get("batch_size")
        over = (
            cap is not None and status.running is not None and status.running > cap * status.ranks
        )
        body: dict[str, object] = {
            "applied": applied,
            "previous": {name: before[name].value for name in applied},
            "instance_id": self._instance_id,
            "revision": self._revision,
            "expires_in_s": min(ends, default=None),
            "draining_down": over,
            "dry_run": change.wish.dry_run,
        }
        return Response(code, {"ETag": self._etag()}, body)

    def _repeated(self, wish: Wish) -> Response | None:
        with self._lock:
            first = None if wish.request_id is None else self._done.get(wish.request_id)
        if first is None:
            return None
        if first[0] != wish.digest:
            raise RefusalError(
                400, f"request_id {wish.request_id!r} stands for another request; send a new one"
            )
        return first[1]

    def _remember(self, change: Change, response: Response) -> Response:
        if change.wish.request_id is not None:
            self._done[change.wish.request_id] = (change.wish.digest, response)
            while len(self._done) > REMEMBERED:
                self._done.popitem(last=False)
        return response

    def _log(
        self,
        source: Source,
        who: str,
        before: Mapping[str, int],
        after: Mapping[str, int],
        result: str,
        wish: Wish,
    ) -> None:
        self._audit(
            AuditLine(
                who=who,
                source=source,
                before=before,
                after=after,
                revision=self._revision,
                instance_id=self._instance_id,
                reason=wish.reason,
                request_id=wish.request_id,
                epoch=wish.epoch,
                ttl_s=wish.ttl_s,
                result=result,
            )
        )
