"""`tuner promote` and `tuner demote`, as a user calls them, on a simulated fleet in shadow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.commands import operating
from tests.commands.operating import call
from tuner.config.file import load_config
from tuner.control.audit_store import PromotionKind
from tuner.control.promote import check_active
from tuner.core.errors import ConfigError


@pytest.fixture(scope="module")
def an_hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and an hour in shadow under it."""
    folder = tmp_path_factory.mktemp("an-hour")
    operating.watched(operating.write(folder))
    return folder


@pytest.fixture
def config(an_hour: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(an_hour, tmp_path / "copy")) / "tuner.yaml"


def may_act(config: Path) -> str | None:
    """None, or why not."""
    store = operating.opened(config)
    try:
        check_active(store, load_config(config).targets[0], operating.identity(config))
    except ConfigError as error:
        return str(error)
    finally:
        store.close()
    return None


def test_what_passes_every_gate_is_shown_and_only_stored_when_asked(config):
    shown = call("promote", "--config", str(config))
    assert shown.exit_code == 0, shown.output
    assert "every gate holds" in shown.output
    assert "240 decisions in shadow" in shown.output
    assert shown.output.count("holds\n") >= 7
    assert "nothing is stored yet" in shown.output
    assert "nobody has promoted it" in may_act(config)

    stored = call("promote", "--config", str(config), "--apply")
    assert stored.exit_code == 0, stored.output
    assert "kubectl apply -k deploy/manifests/active" in stored.output
    assert may_act(config) is None
    store = operating.opened(config)
    record = store.promotion("r1")
    store.close()
    assert record.kind is PromotionKind.PROMOTED
    assert record.evidence["evidence"]["prediction"]["gain"]["mean"] > 0.1

    demoted = call("demote", "--config", str(config), "--reason", "a drill")
    assert demoted.exit_code == 0
    assert "nothing may act on r1" in demoted.output
    assert "kubectl apply -k deploy/manifests/shadow" in demoted.output
    assert "(a drill)" in may_act(config)


def test_a_gate_that_fails_refuses_with_the_reason_and_stores_nothing(tmp_path):
    config = operating.write(tmp_path, hours=48)
    operating.watched(config, 40)
    refused = call("promote", "--config", str(config), "--apply")
    assert refused.exit_code == 1
    flat = " ".join(refused.output.split())
    assert "refused: watched in shadow: 0.17 h, needed at least 48 h; go on watching" in flat
    assert "requests in 10 min with profile" in flat
    assert "stored" not in refused.output
    assert "nobody has promoted it" in may_act(config)


def test_evidence_of_another_configuration_counts_for_nothing(config):
    changed = operating.write(config.parent, target=299)
    refused = call("promote", "--config", str(changed), "--json")
    assert refused.exit_code == 1
    (result,) = json.loads(refused.stdout)
    assert result["holds"] is False
    assert result["evidence"]["watch"]["decisions"] == 0
    assert result["evidence"]["watch"]["others"] == 240
    shown = " ".join(call("promote", "--config", str(changed)).output.split())
    assert "240 others do not count: another policy or another configuration" in shown


def test_a_promotion_does_not_outlive_a_change_of_the_configuration(config):
    assert call("promote", "--config", str(config), "--apply").exit_code == 0
    changed = operating.write(config.parent, target=299)
    assert "another policy" in may_act(changed)


def test_scripts_read_gates_and_evidence_as_json(config):
    result = call("promote", "--config", str(config), "--json")
    assert result.exit_code == 0
    (held,) = json.loads(result.stdout)
    assert (held["target"], held["holds"], held["stored"]) == ("r1", True, False)
    names = {gate["name"] for gate in held["gates"]}
    assert {"min_hours", "min_gain", "max_fault_share"} <= names


@pytest.mark.parametrize("command", ["promote", "demote"])
def test_an_unknown_target_is_refused_before_any_work(config, command):
    refused = call(command, "--config", str(config), "--target", "r2")
    assert isinstance(refused.exception, ConfigError)
    assert "target 'r2' is not in the configuration; known: r1" in str(refused.exception)


def test_promoting_before_anything_ran_says_what_to_run(tmp_path):
    refused = call("promote", "--config", str(operating.write(tmp_path)))
    assert isinstance(refused.exception, ConfigError)
    assert "`tuner run` writes it" in str(refused.exception)
