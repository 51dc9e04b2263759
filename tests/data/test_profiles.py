"""Serving profiles: read strictly, every mistake at once with its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.core.errors import ProfileError
from tuner.data import list_profiles, load_profile
from tuner.data.profiles import parse_profile

GOOD = """\
schema: tuner.profile/1
name: ours
scheduler: vidur-sarathi
gpus_per_replica: 8
kv: {block_tokens: 16, blocks: 1000, watermark: 0.01}
limits: {batch_size_max: 64, chunk_tokens: 512}
step_time: {base_s: 0.01, per_prefill_token_s: 6e-5, per_sequence_s: 1e-4, per_kv_token_s: 2e-8}
startup: {stages: {weights: {median_s: 60, spread: 0.2}}, warmup_request_s: 0.5, ramp: [[100, 0.5]]}
frontend: {cores: 8, per_request_s: 0.001, per_token_s: 1e-6}
origin: {step_time: measured, frontend: guessed}
assumed: [frontend, startup.ramp]
error: {tpot_mean: 0.01}
"""


def mistakes(text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, "ours.yaml")
    return str(caught.value)


def test_reads_every_section() -> None:
    profile = parse_profile(GOOD, "ours.yaml")
    assert profile.step_time.per_prefill_token_s == 6e-5
    assert profile.kv.tokens == 16_000
    assert profile.kv.watermark_blocks == 10
    assert profile.startup is not None
    assert profile.startup.ramp == ((100, 0.5),)
    assert profile.frontend is not None
    assert profile.unmodelled_knobs() == {}


@pytest.mark.parametrize("name", list_profiles())
def test_built_in_profiles_hold_and_say_where_their_figures_come_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.origin


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("blocks: 1000", "blocks: 1000.5", 1),
        ("chunk_tokens: 512", "chunk_tokens: many", 1),
        ("blocks: 1000, watermark: 0.01", "blocks: 1000.5, watermark: 2", 2),
    ],
)
def test_nothing_is_said_of_a_stand_in(old: str, new: str, lines: int) -> None:
    told = mistakes(GOOD.replace(old, new))
    assert len(told.splitlines()) == lines, told
    assert "is above" not in told


def test_the_default_profile_is_built_in_with_its_error() -> None:
    profile = load_profile("deepseek-r1-8xh200-sglang")
    assert {"tpot_mean", "tpot_worst", "ttft_mean", "ttft_worst"} <= profile.error.keys()
    assert "extrapola" in profile.origin["limits.batch_size_max"]


def test_reads_a_file_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(GOOD)
    assert load_profile(tmp_path / "ours.yaml") == load_profile(str(tmp_path / "ours.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("limits:", "limit:", "limit is not a known key; did you mean 'limits'?"),
        ("blocks: 1000", "block: 1000", "kv.block is not a known key; did you mean"),
        ("base_s", "bas_s", "step_time.bas_s is not a known key; did you mean 'base_s'?"),
        ("name: ours\n", "", "name is missing"),
        ("tuner.profile/1", "tuner.profile/2", "schema is 'tuner.profile/2'; expected"),
        ("gpus_per_replica: 8", "gpus_per_replica: '8'", "gpus_per_replica is '8'; expected a"),
        ("gpus_per_replica: 8", "gpus_per_replica: 8.5", "gpus_per_replica is 8.5"),
        ("gpus_per_replica: 8", "gpus_per_replica: true", "gpus_per_replica is True"),
        ("gpus_per_replica: 8", "gpus_per_replica: 0", "gpus_per_replica is 0; expected at"),
        ("base_s: 0.01", "base_s: -0.01", "step_time.base_s is -0.01; expected at least 0"),
        ("base_s: 0.01", "base_s: .nan", "step_time.base_s is nan; expected a finite number"),
        ("base_s: 0.01", "base_s: .inf", "step_time.base_s is inf"),
        ("base_s: 0.01", "base_s: fast", "step_time.base_s is 'fast'; expected a number"),
        ("watermark: 0.01", "watermark: 1.5", "kv.watermark is 1.5; expected a share"),
        ("watermark: 0.01", "watermark: -0.1", "kv.watermark is -0.1"),
        ("blocks: 1000", "blocks: 63", "limits.batch_size_max 64 is above kv.blocks 63"),
        ("median_s: 60", "median_s: -1", "startup.stages.weights.median_s is -1"),
        ("spread: 0.2", "spread: 3", "startup.stages.weights.spread is 3.0; expected a sigma"),
        ("median_s: 60", "median_s: 1e6", "startup.stages.weights.median_s is 1000000.0; expected"),
        ("{weights: {", "{weigths: {", "did you mean 'weights'?"),
        ("[[100, 0.5]]", "[[100, 0]]", "startup.ramp[0] has speed 0"),
        ("[[100, 0.5]]", "[[100, 1.2]]", "startup.ramp[0] has speed 1.2"),
        ("[[100, 0.5]]", "[[0, 0.5]]", "startup.ramp[0] lasts 0 requests"),
        ("[[100, 0.5]]", "[[100]]", "startup.ramp[0]"),
        ("cores: 8", "cores: 0", "frontend.cores is 0; expected at least 1"),
        ("name: ours", "name: ours\nname: twice", "line 3 is not valid YAML (key 'name' appears"),
        ("kv: {", "kv: {{", "is not valid YAML"),
    ],
    ids=[
        "unknown section",
        "unknown key of a section",
        "misspelt key",
        "missing key",
        "another schema",
        "text for a number",
        "fraction for a count",
        "boolean for a count",
        "no GPU",
        "negative time",
        "time that is no number",
        "infinite time",
        "word for a time",
        "watermark above 1",
        "watermark below 0",
        "batch above the blocks",
        "negative cold start",
        "wild spread",
        "start of days",
        "misspelt stage",
        "ramp of no speed",
        "ramp above full speed",
        "ramp of no request",
        "ramp without speed",
        "no core",
        "key given twice",
        "not YAML",
    ],
)
def test_says_what_is_wrong_with(old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    message = mistakes(GOOD.replace(old, new, 1))
    assert sentence in message
    assert all(line.startswith("ours.yaml") for line in message.splitlines())


def test_a_ceiling_that_no_replica_starts_with_is_refused_unless_the_knob_is_the_ceiling() -> None:
    tight = "chunk_tokens: 512, batch_size_oom: 48"
    sentence = "limits.batch_size_max 64 is above limits.batch_size_oom 48; every replica would"
    assert sentence in mistakes(GOOD.replace("chunk_tokens: 512", tight))
    told = GOOD.replace("chunk_tokens: 512", f"{tight}, batch_size_applied: restart")
    assert parse_profile(told, "ours.yaml").limits.batch_size_oom == 48
    wrong = GOOD.replace("chunk_tokens: 512", f"{tight}, batch_size_applied: reload")
    assert "limits.batch_size_applied is 'reload'; expected one of" in mistakes(wrong)
    assert "batch_size_oom is 0; expected at least 1" in mistakes(
        GOOD.replace("chunk_tokens: 512", "chunk_tokens: 512, batch_size_oom: 0")
    )


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("[[1, 0.01], [1, 0.02]]", "batch_table[1] is at 1 sequences, not above the 1 before it"),
        ("[[4, 0.01], [2, 0.02]]", "batch_table[1] is at 2 sequences, not above the 4 before it"),
        ("[[1, 0.01], [8, 0.009]]", "batch_table[1] is 0.009 s, below the 0.01 s"),
        ("[[1, 0.0], [8, 0.01]]", "batch_table[0] is 0.0 s; expected above 0"),
        ("[[0, 0.01], [8, 0.02]]", "batch_table[0] is at 0 sequences"),
        ("[[1, 0.01]]", "batch_table has one point"),
        ("[[1, .nan], [8, 0.01]]", "batch_table[0][1] is nan"),
    ],
    ids=["the same batch twice", "falling batch", "falling time", "no time", "no sequence",
         "one point", "no number"],
)  # fmt: skip
def test_says_what_is_wrong_with_a_batch_table(table: str, sentence: str) -> None:
    assert sentence in mistakes(GOOD.replace("base_s: 0.01", f"batch_table: {table}"))


def test_an_iteration_must_take_time() -> None:
    text = GOOD.replace("base_s: 0.01", "base_s: 0").replace("1e-4", "0")
    assert "step_time gives an iteration of one sequence 0 seconds" in mistakes(text)


BATCH_LAW = "base_s: 0.01, per_prefill_token_s: 6e-5, per_sequence_s: 1e-4"


def test_tables_stand_in_for_the_terms_of_batch_and_prompt_tokens() -> None:
    tables = "batch_table: [[1, 0.01], [8, 0.02]], prefill_table: [[8, 0.001], [512, 0.03]]"
    step = parse_profile(GOOD.replace(BATCH_LAW, tables), "ours.yaml").step_time
    assert step.batch_table == ((1, 0.01), (8, 0.02))
    assert step.prefill_table == ((8, 0.001), (512, 0.03))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            f"{BATCH_LAW}, batch_table: [[1, 0.01], [8, 0.02]]",
            "step_time.per_sequence_s is 0.0001 beside batch_table; give one of the two",
        ),
        (
            f"{BATCH_LAW}, prefill_table: [[8, 0.001], [512, 0.03]]",
            "step_time.per_prefill_token_s is 6e-05 beside prefill_table",
        ),
        (
            "base_s: 0.01, prefill_base_s: 0.1, prefill_table: [[8, 0.001], [512, 0.03]]",
            "step_time.prefill_base_s is 0.1 beside prefill_table",
        ),
        (
            "base_s: 0.01, prefill_table: [[8, 0.003], [8, 0.004]]",
            "prefill_table[1] is at 8 prompt tokens, not above the 8 before it",
        ),
        (
            "base_s: 0.01, prefill_table: [[8, 0.003], [9, 0.002]]",
            "prefill_table[1] is 0.002 s, below the 0.003 s of fewer prompt tokens",
        ),
        ("base_s: 0.01, straggler: [[1, 1.0]]", "straggler has one point"),
        (
            "base_s: 0.01, straggler: [[1, 0.9], [8, 1.2]]",
            "straggler[0] is a factor of 0.9; expected at least 1",
        ),
        ("base_s: 0.01, straggler: [[4, 1.1], [2, 1.2]]", "straggler[1] is at 2 sequences"),
        ("base_s: 0.01, per_context_s: -1e-9", "step_time.per_context_s is -1e-09"),
    ],
)
def test_says_what_is_wrong_with_the_terms_of_a_step(keys: str, sentence: str) -> None:
    assert sentence in mistakes(GOOD.replace(BATCH_LAW, keys))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (", frontend: guessed", "", "origin.frontend is missing; expected where the figures"),
        ("startup.ramp", "startup.rmap", "assumed[1] is 'startup.rmap'; expected a key of this"),
        ("startup.ramp", "startup.rmap", "did you mean 'startup.ramp'?"),
        ("1e-6}", "1e-6, ingress_s: -0.1}", "frontend.ingress_s is -0.1"),
        ("chunk_tokens: 512", "chunk_tokens: 1048577", "limits.chunk_tokens is 1,048,577"),
        ("tokens: 512}", "tokens: 512, batch_size_oom: 0}", "limits.batch_size_oom is 0"),
    ],
)
def test_says_what_a_profile_leaves_open(old: str, new: str, sentence: str) -> None:
    assert sentence in mistakes(GOOD.replace(old, new))


def test_names_what_no_measurement_stands_behind() -> None:
    profile = parse_profile(GOOD, "ours.yaml")
    assert profile.assumptions() == ("threads (frontend)", "startup.ramp", "kv (no origin)")
    told = GOOD.replace("step_time: measured", "kv.blocks: read off, step_time: measured")
    told = told.replace("assumed: [frontend, startup.ramp]", "assumed: []")
    assert parse_profile(told, "ours.yaml").assumptions() == ("startup (no origin)",)


def test_reports_all_mistakes_at_once() -> None:
    message = mistakes(
        GOOD.replace("watermark: 0.01", "watermark: 2").replace("cores: 8", "cores: 0")
    )
    assert len(message.splitlines()) == 2
    message = mistakes(GOOD.replace("kv:", "kvv:").replace("name: ours\n", ""))
    assert "kvv is not a known key" in message
    assert "kv is missing" in message
    assert "name is missing" in message


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("deepseek-r1-8xh200-sglan", "did you mean 'deepseek-r1-8xh200-sglang'?"),
        ("deepseek-r1", "did you mean 'deepseek-r1-8xh200-sglang'"),
        ("nothing-like-it", "is not built in (built in: deepseek-r1-8xh200-sglang"),
        ("none.yaml", "none.yaml does not exist"),
    ],
    ids=["misspelt name", "name begun", "unknown name", "missing file"],
)
def test_says_which_profiles_there_are(name: str, sentence: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds nothing; expected keys and values"),
        (b"- 1\n- 2\n", "holds list; expected keys and values"),
        (b"\xff\xfe\x00", "cannot be read as text"),
    ],
    ids=["empty", "a list", "binary"],
)
def test_says_when_a_file_is_no_profile(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert sentence in str(caught.value)


def test_a_folder_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="is a folder"):
        load_profile(tmp_path)
