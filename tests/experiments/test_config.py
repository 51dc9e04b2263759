from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

import experiments
from envs.randomise import RandomiseConfig
from experiments.config import CompareConfig, GuardrailConfig, RunConfig, load_compare_config
from experiments.training import TrainingFile
from tuner.core.errors import ConfigError
from tuner.core.slo import Slo
from tuner.data.strict import build, parse_yaml
from tuner.guardrails import LIMITS, TRIPS
from tuner.guardrails.max_delta import DEFAULT_STEPS, Step


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "compare.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("text", ["", "\n# nothing but a comment is left out\nseeds: 3\n"])
def test_what_a_file_leaves_out_has_its_default(written, text):
    assert load_compare_config(written(text)) == CompareConfig()


def test_a_file_changes_what_it_names_and_nothing_else(written):
    path = written(
        "seeds: 5\n"
        "run:\n"
        "  slo: {ttft_s: 1, tpot_s: 5e-2}\n"
        "  router: round_robin\n"
        "  guardrails: {steps: {replicas: {up: 2, down: 1}}}\n"
        "sweep: {static_counts: [4, 6], hpa_targets: [900]}\n"
    )
    config = load_compare_config(path)
    assert config.seeds == 5
    assert config.run == replace(
        RunConfig(),
        slo=Slo(1.0, 0.05),
        router="round_robin",
        guardrails=GuardrailConfig(steps={"replicas": Step(up=2, down=1)}),
    )
    assert config.sweep.static_counts == (4, 6)
    assert config.statistics == CompareConfig().statistics


def test_every_mistake_is_reported_at_once_with_its_path_and_the_nearest_key(written):
    path = written(
        "sedes: 3\n"
        "run:\n"
        "  slo: {ttft: 2}\n"
        "  router: fastest\n"
        "  jitter: much\n"
        "  guardrails: {steps: {replicas: {upp: 1}}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_compare_config(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert sorted(line.removeprefix(f"{path}: ") for line in lines) == [
        "run.guardrails.steps.replicas.upp is not a known key; did you mean 'up'?",
        "run.jitter is 'much'; expected a number",
        "run.router is 'fastest'; expected one of 'round_robin', 'least_pending' or 'least_loaded'",
        "run.slo.ttft is not a known key; did you mean 'ttft_s'?",
        "sedes is not a known key; did you mean 'seeds'?",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seeds: 0", "seeds is 0; expected at least 1"),
        ("run: {tick_s: 0}", "run.tick_s is 0.0; expected above 0"),
        ("run: {tick_s: .nan}", "run.tick_s is nan; expected a finite number"),
        ("run: {jitter: -0.1}", "run.jitter is -0.1; expected 0 to 2"),
        ("run: {slo: {ttft_s: 0}}", "run.slo.ttft_s is 0.0; expected above 0"),
        ("run: {drain_timeout_s: -1}", "run.drain_timeout_s is -1.0; expected 0 to"),
        ("run: {startup: hot}", "run.startup is 'hot'; expected one of 'warm', 'normal' or 'cold'"),
        (
            "run: {failures: {crash_per_hour: -1}}",
            "run.failures.crash_per_hour is -1.0; expected 0 to 3600",
        ),
        ("run: {max_replicas: 0}", "run.max_replicas is 0; expected at least 1"),
        (
            "run: {initial_replicas: 9, max_replicas: 8}",
            "run.initial_replicas is 9; expected 1 to max_replicas (8)",
        ),
        (
            "run: {guardrails: {steps: {replica: {up: 1}}}}",
            "run.guardrails.steps.replica is not a known knob; did you mean 'replicas'?",
        ),
        (
            "run: {guardrails: {steps: {threads: {down: -1}}}}",
            "run.guardrails.steps.threads.down is -1; expected at least 0",
        ),
        ("sweep: {goal: 1.5}", "sweep.goal is 1.5; expected a share above 0, at most 1"),
        (
            "sweep: {static_counts: [4, 40]}",
            "sweep.static_counts[1] is 40; expected 1 to run.max_replicas (32)",
        ),
        ("sweep: {hpa_targets: [0]}", "sweep.hpa_targets[0] is 0.0; expected above 0"),
        (
            "run: {scrape: {window_s: 30}}",
            "run.scrape.window_s is 30.0; expected 4 to 240 times interval_s (60 to 3600)",
        ),
        ("run: {scrape: {loss: 1}}", "run.scrape.loss is 1.0; expected 0 <= chance < 1"),
        ("statistics: {block_s: 0}", "statistics.block_s is 0.0; expected above 0"),
        ("statistics: {resamples: 9}", "statistics.resamples is 9; expected at least 100"),
    ],
)
def test_a_value_out_of_its_range_gets_a_sentence(written, text, sentence):
    with pytest.raises(ConfigError) as caught:
        load_compare_config(written(text))
    assert sentence in str(caught.value)


def test_a_short_window_is_one_mistake_and_not_two(written):
    with pytest.raises(ConfigError) as caught:
        load_compare_config(written("run: {scrape: {window_s: 10}}"))
    assert "window_s is 10.0" in str(caught.value)
    assert "lag_s" not in str(caught.value)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; expected a configuration in YAML"):
        load_compare_config(tmp_path / "absent.yaml")


def test_every_guardrail_of_the_project_guards_a_run():
    guardrails = GuardrailConfig().build()
    assert {trip.name for trip in guardrails.trips} == set(TRIPS)
    assert {limit.name for limit in guardrails.limits} == set(LIMITS)


def test_widths_replace_the_default_of_their_knob_only():
    config = GuardrailConfig(max_age_s=30.0, steps={"replicas": Step(up=1)})
    stale = next(trip for trip in config.build().trips if trip.name == "stale_metrics")
    delta = next(limit for limit in config.build().limits if limit.name == "max_delta")
    assert stale.max_age_s == 30.0
    assert delta.steps["replicas"] == Step(up=1)
    assert delta.steps["batch_size"] == DEFAULT_STEPS["batch_size"]


def test_the_example_names_every_key_with_its_default():
    path = Path(experiments.__file__).parent / "configs" / "compare.yaml"
    assert load_compare_config(path) == CompareConfig()

    def keys(value):
        return {key: keys(inner) for key, inner in value.items()} if isinstance(value, dict) else {}

    assert keys(yaml.safe_load(path.read_text())) == keys(asdict(CompareConfig()))


def training_file(text):
    stated = parse_yaml(text, "train.yaml", ConfigError)
    return build(TrainingFile, stated, "train.yaml", ConfigError)


def test_the_example_of_randomised_training_names_every_width_with_its_default():
    text = (Path(experiments.__file__).parent / "configs" / "train-randomised.yaml").read_text()
    assert training_file(text).train.env.randomise == RandomiseConfig(enabled=True)
    stated = yaml.safe_load(text)["train"]["env"]["randomise"]
    assert stated.keys() == asdict(RandomiseConfig()).keys()
    off = training_file("train: {env: {randomise: {enabled: false}}}")
    assert off.train.env == training_file("train: {}").train.env


def test_a_comparison_refuses_to_be_randomised(written):
    with pytest.raises(ConfigError, match=r"run\.randomise is not a known key"):
        load_compare_config(written("run: {randomise: {enabled: true}}\n"))
