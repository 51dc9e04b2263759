"""The README names everything there is, and nothing that is not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from typer.main import get_command

from policies import POLICIES
from tuner.cli import app
from tuner.commands import COMMANDS
from tuner.guardrails import LIMITS, TRIPS
from tuner.knobs import KNOBS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = [line for line in README.splitlines() if line.startswith("|")]
FOLDERS = ["tuner/core", "tuner/data", "tuner/guardrails", "tuner/knobs", "tuner/train", "policies"]
FOLDERS += [
    "envs",
    "envs/simulator",
    "envs/workloads",
    "tuner/config",
    "tuner/live",
    "tuner/engines",
    "envs/sandbox",
    "deploy/sidecar",
    "deploy/vllm_plugin",
    "tests/real",
    "deploy",
    "deploy/manifests",
    "deploy/warmup",
    "tests/kube",
    "tuner/control",
]


@pytest.mark.parametrize("name", [*TRIPS, *LIMITS, *KNOBS, *POLICIES])
def test_every_guardrail_knob_and_policy_has_a_row(name):
    assert any(line.startswith(f"| `{name}` |") for line in TABLES)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_among_the_jobs(name):
    assert f"`tuner {name} " in README


def commands_shown() -> list[str]:
    fenced = re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    lines = "\n".join(fenced).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`(tuner [^`]+)`", README)
    return [c for c in [*lines, *inline] if c.startswith("tuner ")]


def subcommands(name: str) -> dict[str, object]:
    command = get_command(app).commands[name]
    return getattr(command, "commands", {"": command})


@pytest.mark.parametrize("command", commands_shown())
def test_every_command_shown_takes_the_options_shown(command):
    words = shlex.split(command.replace("\\|", "|"))[1:]
    known = subcommands(words[0])
    sub = known.get(words[1], known.get("")) if len(words) > 1 else known.get("")
    assert sub is not None, f"tuner {words[0]} has no {words[1]}"
    options = {option for parameter in sub.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_folders_say_what_belongs_in_them(folder):
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {folder}")


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_in_the_makefile(target):
    assert f"make {target} " in README
    assert re.search(rf"^{target}: setup", (ROOT / "Makefile").read_text(), flags=re.M)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_with_an_example(name):
    for sub in subcommands(name):
        arguments = [name, sub, "--help"] if sub else [name, "--help"]
        result = CliRunner().invoke(get_command(app), arguments)
        assert result.exit_code == 0
        assert f"tuner {name} {sub}".strip() in result.output
