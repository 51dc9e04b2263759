"""`tuner record`: how spans are written, and mistakes that end before anything is asked."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from typer.main import get_command

from tuner.cli import app
from tuner.core.errors import ConfigError, InputError
from tuner.live.metrics.spans import moment_s, span_s

NOW_S = 1_800_000_000.0

CONFIG = """
schema: tuner.config/1
targets:
  - name: a
    policy: static
    policy_options: {replicas: 2}
    fallback: static
    fallback_options: {replicas: 2}
    engine: {kind: vllm}
    prometheus: {url: "http://127.0.0.1:9"}
    processes: {endpoints: [{name: r0, url: "http://127.0.0.1:9"}]}
    move: []
"""
SCRAPED = CONFIG.replace('prometheus: {url: "http://127.0.0.1:9"}', "scrape: {}")
TWO = CONFIG + CONFIG[CONFIG.index("  - name") :].replace("name: a", "name: b", 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("15s", 15.0), ("1.5h", 5400.0), ("90m", 5400.0), ("7d", 604800.0), ("2w", 1209600.0)],
)
def test_a_length_of_time_is_a_number_and_a_unit(text, expected):
    assert span_s("--every", text) == expected
    assert moment_s("--since", text, NOW_S) == NOW_S - expected


@pytest.mark.parametrize("text", ["", "15", "s", "-5s", "0s", "5 s", "1y", "15s later"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(ConfigError, match="--every is"):
        span_s("--every", text)


@pytest.mark.parametrize(
    "text",
    ["2027-01-15T08:00:00Z", "2027-01-15T09:00:00+01:00", "2027-01-15 08:00:00+00:00"],
)
def test_a_moment_is_a_time_with_its_zone(text):
    assert moment_s("--since", text, NOW_S) == NOW_S


@pytest.mark.parametrize(
    ("text", "words"),
    [("2027-01-15T08:00:00", "without a zone"), ("yesterday", "a length back from now")],
)
def test_what_is_no_moment_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        moment_s("--since", text, NOW_S)


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (CONFIG, ["--since", "soon"], "--since is 'soon'"),
        (CONFIG, ["--every", "0s"], "--every is '0s'"),
        (CONFIG, ["--target", "z"], "--target is 'z'; expected one of a"),
        (TWO, [], "--target is not given; expected one of a, b"),
        (SCRAPED, [], "add the section prometheus"),
        (CONFIG, ["--since", "1h", "--until", "2h"], "no whole window"),
        (CONFIG, ["--since", "2999-01-01T00:00:00Z"], "from 2999-01-01T00:00:00Z until 20"),
        (CONFIG, ["--out", "/nowhere/t.parquet"], "folder /nowhere does not exist"),
    ],
    ids=[
        "since",
        "every",
        "target",
        "which target",
        "no prometheus",
        "end before start",
        "start to come",
        "no folder",
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(tmp_path, config, options, words):
    path = tmp_path / "tuner.yaml"
    path.write_text(config)
    out = tmp_path / "telemetry.parquet"
    arguments = ["record", "--config", str(path), "--out", str(out), *options]
    found = CliRunner().invoke(get_command(app), arguments)
    assert isinstance(found.exception, InputError)
    assert words in str(found.exception)
    assert found.stderr == ""
    assert {one.name for one in tmp_path.iterdir()} == {"tuner.yaml"}
