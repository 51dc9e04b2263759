"""The sidecar beside small SGLangs and Tritons on real sockets, in this process and in its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tuner_sidecar.contract import Contract, EngineError, RefusedByEngineError
from tuner_sidecar.engine import EngineHttp
from tuner_sidecar.sglang import Sglang, sums
from tuner_sidecar.triton import Triton, with_values

from tests.deploy.fakes import FakeEngine, FakeSglang, FakeTriton

ROOT = Path(__file__).parents[2]
SIDECAR = ROOT / "deploy" / "sidecar"
PATH = "/v1/runtime_config"
F = TypeVar("F", bound=FakeEngine)


@pytest.fixture
def started() -> Iterator[Callable[[F], F]]:
    engines: list[FakeEngine] = []

    def start(engine: F) -> F:
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.close()


def client(engine: FakeEngine, **options: Any) -> EngineHttp:
    return EngineHttp(engine.url, **{"timeout_s": 10.0, **options})


def reach(condition: Callable[[], bool], what: str) -> None:
    pause = threading.Event()
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"{what}: not within 30 s"
        pause.wait(0.02)


def test_the_contract_has_one_source():
    ours = SIDECAR / "tuner_sidecar" / "contract"
    assert ours.is_symlink()
    assert not Path(ours.readlink()).is_absolute()
    assert ours.resolve() == ROOT / "tuner" / "engines" / "contract"


# SGLang.


def test_sglang_tells_its_caps_counts_and_ceiling(started):
    engine = started(FakeSglang([16, 16]))
    status = Sglang(client(engine)).status()
    assert (status.running, status.waiting, status.ranks) == (11, 2, 2)
    knobs = {n: (k.value, k.low, k.high, k.actuation) for n, k in (status.knobs or {}).items()}
    assert knobs == {"batch_size": (16, 1, 64, "hot"), "threads": (2, 2, 2, "unsupported")}


def test_sglang_without_metrics_has_no_counts(started):
    engine = started(FakeSglang([16]))
    engine.metrics = False
    status = Sglang(client(engine)).status()
    assert (status.running, status.waiting) == (None, None)


def test_sglang_with_pipeline_stages_cannot_be_moved(started):
    status = Sglang(client(started(FakeSglang([16], pp_size=2)))).status()
    assert (status.knobs or {})["batch_size"].actuation == "unsupported"


def test_sglang_sets_every_scheduler_and_reads_back(started):
    engine = started(FakeSglang([16, 16]))
    Sglang(client(engine)).apply({"batch_size": 4})
    assert engine.caps == [4, 4]
    assert engine.asked[-1] == ("GET", "/server_info")


def test_sglang_that_answers_200_and_false_has_refused(started):
    engine = started(FakeSglang([16, 16]))
    engine.refusing = {0, 1}
    with pytest.raises(RefusedByEngineError, match="every scheduler refused"):
        Sglang(client(engine)).apply({"batch_size": 4})


def test_sglang_of_which_one_scheduler_refuses_is_not_settled(started):
    engine = started(FakeSglang([16, 16]))
    engine.refusing = {1}
    with pytest.raises(
        EngineError, match=r"schedulers answered \[True, False\] and hold \[4, 16\]"
    ):
        Sglang(client(engine)).apply({"batch_size": 4})
    with pytest.raises(EngineError, match="the schedulers hold different caps"):
        Sglang(client(engine)).status()


def test_sglang_that_says_true_and_does_nothing_is_found_out(started):
    engine = started(FakeSglang([16]))
    engine.lying = {0}
    with pytest.raises(EngineError, match=r"and hold \[16\]"):
        Sglang(client(engine)).apply({"batch_size": 4})


def test_sglang_with_a_key_wants_it(started):
    engine = started(FakeSglang([16]))
    engine.key = "k"
    with pytest.raises(RefusedByEngineError, match="GET /server_info answered 401: no key"):
        Sglang(client(engine)).status()
    Sglang(client(engine, key="k")).apply({"batch_size": 4})
    assert engine.caps == [4]


def test_what_a_dead_sidecar_left_behind_in_sglang_is_undone(started):
    engine = started(FakeSglang([16, 16]))
    engine.caps = [4, 4]
    Sglang(client(engine)).to_start_up()
    assert engine.caps == [16, 16]


def test_a_lost_answer_is_told_in_time_and_is_not_a_refusal(started):
    engine = started(FakeSglang([16]))
    engine.hang.set()
    with pytest.raises(EngineError, match=r"no answer within 0\.2 s") as trouble:
        Sglang(client(engine, timeout_s=0.2)).apply({"batch_size": 4})
    assert not isinstance(trouble.value, RefusedByEngineError)


BROKEN = {
    "no JSON": "<html>",
    "a list": "[]",
    "no states": "{}",
    "no ceiling": '{"internal_states": [{}]}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_an_answer_of_another_shape_is_told_as_a_sentence(started, text):
    engine = started(FakeSglang([16]))
    engine.answer = lambda *_: (200, text)
    with pytest.raises(EngineError, match="/server_info"):
        Sglang(client(engine)).status()


def test_a_page_is_summed_over_labels_and_other_names_do_not_count():
    page = 'a{x="1 }"} 2\na 3.0 1700000000\nab 9\n# a 7\n'
    with pytest.raises(EngineError, match="no sample"):
        sums("a\n", ("a",))
    assert sums('a{x="1"} 2\na 3.0\nab 9\n# a 7\n', ("a", "b")) == {"a": 5}
    assert sums(page.splitlines()[0], ("a",)) == {"a": 2}


# Triton.


def test_triton_tells_its_knobs_with_the_limits_given(started):
    triton = Triton(client(started(FakeTriton())), "tiny", {"threads": (1, 4)})
    assert triton.about().version == "2.51.0"
    knobs = triton.status().knobs or {}
    told = {n: (k.value, k.low, k.high, k.actuation, k.slow) for n, k in knobs.items()}
    assert told == {"batch_size": (8, 1, 8, "reload", True), "threads": (1, 1, 4, "hot", True)}


def test_the_limit_found_at_the_start_does_not_shrink_with_the_value(started):
    triton = Triton(client(started(FakeTriton())), "tiny", {})
    triton.about()
    triton.apply({"batch_size": 2})
    assert (triton.status().knobs or {})["batch_size"].high == 8


CONFIGS = {
    "batch size lowers what is preferred": ({"batch_size": 2}, 2, [2], 1),
    "full stays full": ({"batch_size": 16}, 16, [4, 16], 1),
    "between": ({"batch_size": 6}, 6, [4, 6], 1),
    "instances": ({"threads": 3}, 8, [4, 8], 3),
    "both": ({"batch_size": 4, "threads": 2}, 4, [4], 2),
}


@pytest.mark.parametrize(("values", "cap", "preferred", "count"), CONFIGS.values(), ids=CONFIGS)
def test_triton_loads_the_whole_configuration(started, values, cap, preferred, count):
    engine = started(FakeTriton())
    Triton(client(engine), "tiny", {}).apply(values)
    assert engine.config["max_batch_size"] == cap
    assert engine.config["dynamic_batching"]["preferred_batch_size"] == preferred
    assert engine.config["instance_group"][0]["count"] == count
    assert engine.config["dynamic_batching"]["max_queue_delay_microseconds"] == 100


def test_a_configuration_is_copied_not_changed():
    config = {"max_batch_size": 8, "instance_group": [{"count": 1}]}
    with_values(config, {"threads": 2})
    assert config["instance_group"] == [{"count": 1}]


def test_triton_that_fails_to_load_has_refused_and_serves_on(started):
    engine = started(FakeTriton())
    with pytest.raises(RefusedByEngineError, match=r"out of memory.*the old model goes on serving"):
        Triton(client(engine), "tiny", {}).apply({"threads": 4})
    assert engine.config == FakeTriton.CONFIG


UNMOVABLE = {
    "no batching": ({"max_batch_size": 0}, {"batch_size": "unsupported", "threads": "hot"}),
    "two groups": (
        {"instance_group": [{"count": 1}, {"count": 2}]},
        {"batch_size": "reload", "threads": "unsupported"},
    ),
    "no group": ({"instance_group": []}, {"batch_size": "reload"}),
}


@pytest.mark.parametrize(("change", "expected"), UNMOVABLE.values(), ids=UNMOVABLE)
def test_triton_models_that_cannot_be_moved_say_so(started, change, expected):
    engine = started(FakeTriton())
    engine.config.update(change)
    knobs = Triton(client(engine), "tiny", {}).status().knobs or {}
    assert {name: knob.actuation for name, knob in knobs.items()} == expected


# The contract over an engine.


def contract(engine: Sglang | Triton, **options: Any) -> Contract:
    return Contract(
        engine.status().knobs or {},
        engine.apply,
        engine.status,
        engine=engine.name,
        engine_version="1",
        model="m",
        token=None,
        min_interval_s=0.0,
        **options,
    )


def patch(served: Contract, knobs: dict[str, int], **more: object) -> int:
    tag = served.handle("GET", PATH, {}).headers["ETag"]
    body = json.dumps({"knobs": knobs, **more}).encode()
    return served.handle("PATCH", PATH, {"If-Match": tag}, body).status


def test_schedulers_that_disagree_are_brought_back_together(started):
    engine = started(FakeSglang([16, 16]))
    served = contract(Sglang(client(engine)))
    engine.refusing = {1}
    assert patch(served, {"batch_size": 4}) == 504
    assert engine.caps == [4, 16]
    engine.refusing = set()
    served.expire()
    assert engine.caps == [16, 16]


def test_an_sglang_that_started_anew_is_a_new_instance(started):
    engine = started(FakeSglang([16]))
    served = contract(Sglang(client(engine)))
    assert patch(served, {"batch_size": 4}, ttl_s=600) == 200
    first = served.handle("GET", PATH, {}).body
    engine.caps = [16]
    again = served.handle("GET", PATH, {}).body
    assert first["instance_id"] != again["instance_id"]
    assert served.values["batch_size"] == 16


def test_a_reload_of_triton_is_202_and_reading_goes_on(started):
    engine = started(FakeTriton())
    engine.gate = threading.Event()
    served = contract(Triton(client(engine), "tiny", {"batch_size": (1, 8)}))
    assert patch(served, {"batch_size": 2}) == 202
    reach(lambda: engine.loads == 1, "the load")
    assert served.handle("GET", PATH, {}).body["revision"] == 0
    engine.gate.set()
    reach(lambda: served.handle("GET", PATH, {}).body["revision"] == 1, "the reload")
    assert served.values["batch_size"] == 2


# The program.


@contextmanager
def program(tmp_path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The sidecar in a process of its own; its port comes from its log."""
    (tmp_path / "token").write_text("t\n")
    log = tmp_path / "log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tuner_sidecar", *arguments),
                *("--host", "127.0.0.1", "--port", "0", "--min-interval-s", "0"),
                *("--token-file", str(tmp_path / "token")),
            ],
            env={**os.environ, "PYTHONPATH": str(SIDECAR)},
            stderr=out,
            text=True,
        )
    try:
        reach(lambda: " on 127.0.0.1:" in log.read_text() or process.poll() is not None, "the port")
        found = re.search(r" on 127\.0\.0\.1:(\d+)", log.read_text())
        assert found, log.read_text()
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait(10)


def ask(port: int, method: str = "GET", body: object = None, **headers: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    named = {"Authorization": "Bearer t", **{k.replace("_", "-"): v for k, v in headers.items()}}
    connection.request(method, PATH, json.dumps(body) if body is not None else None, named)
    answer = connection.getresponse()
    data = json.loads(answer.read())
    connection.close()
    return answer.status, answer.headers.get("ETag"), data


def test_the_program_returns_to_the_base_by_itself(started, tmp_path):
    engine = started(FakeSglang([16, 16]))
    engine.caps = [4, 4]  # left behind by a sidecar that was killed
    with program(tmp_path, "sglang", "--engine", engine.url) as (_, port):
        _, tag, body = ask(port)
        assert body["knobs"]["batch_size"]["base"] == 16
        assert (body["engine"], body["engine_version"], body["model"]) == ("sglang", "0.5.23", "m")
        status, _, _ = ask(port, "PATCH", {"knobs": {"batch_size": 4}, "ttl_s": 0.5}, If_Match=tag)
        assert status == 200
        reach(lambda: engine.caps == [16, 16], "the way back")  # nobody calls the sidecar
        assert ask(port, Authorization="Bearer x")[0] == 403


def test_the_program_ends_what_is_temporary_before_it_goes(started, tmp_path):
    engine = started(FakeSglang([16]))
    with program(tmp_path, "sglang", "--engine", engine.url) as (process, port):
        _, tag, _ = ask(port)
        ask(port, "PATCH", {"knobs": {"batch_size": 4}, "ttl_s": 600}, If_Match=tag)
        assert engine.caps == [4]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert engine.caps == [16]


def test_the_program_waits_for_its_engine_and_leaves_on_request(tmp_path):
    (tmp_path / "token").write_text("t\n")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "tuner_sidecar", "sglang", "--engine", "http://127.0.0.1:9"]
    command += ["--port", "0", "--token-file", str(tmp_path / "token")]
    with open(log, "w") as out:
        environment = {**os.environ, "PYTHONPATH": str(SIDECAR)}
        process = subprocess.Popen(command, env=environment, stderr=out)
    try:
        reach(lambda: "waiting for the engine: GET /server_info" in log.read_text(), "its word")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(10)


WRONG = {
    "engine over TLS": (["sglang", "--engine", "https://x"], "not of the form http://host:port"),
    "engine with a path": (["sglang", "--engine", "http://x/y"], "not of the form"),
    "triton without model": (["triton", "--engine", "http://x"], "--model is missing"),
    "sglang with limits": (
        ["sglang", "--engine", "http://x", "--limit", "batch_size=1..2"],
        "--limit and --model are for Triton",
    ),
    "limit of another knob": (
        ["triton", "--engine", "http://x", "--model", "m", "--limit", "replicas=1..2"],
        "'replicas=1..2': batch_size=1..64",
    ),
    "limit without dots": (
        ["triton", "--engine", "http://x", "--model", "m", "--limit", "threads=2"],
        "'threads=2': batch_size=1..64",
    ),
    "limit upside down": (
        ["triton", "--engine", "http://x", "--model", "m", "--limit", "threads=4..2"],
        "1 <= low <= high",
    ),
    "no token": (["sglang", "--engine", "http://x", "--token-file", "/nowhere"], "/nowhere"),
    "another kind": (["tgi", "--engine", "http://x"], "invalid choice: 'tgi'"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_ends_with_2_and_a_sentence(tmp_path, arguments, words, capsys):
    from tuner_sidecar.__main__ import main

    (tmp_path / "token").write_text("t\n")
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        with pytest.raises(SystemExit) as end:
            main(
                [
                    *arguments[:1],
                    "--token-file",
                    str(tmp_path / "token"),
                    "--port",
                    "0",
                    *arguments[1:],
                ]
            )
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert end.value.code == 2
    assert words in capsys.readouterr().err
