"""What deploy/README.md tells people to type, held against the commands and the files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from tuner.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
LINES = "\n".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)).splitlines()


@pytest.mark.parametrize(
    "line", [line for line in LINES if "tuner " in line and "docker" not in line]
)
def test_every_tuner_command_takes_what_it_is_given(line):
    words = shlex.split(line)
    words = words[words.index("tuner", words.index("--") if "--" in words else 0) + 1 :]
    command = get_command(app).commands[words[0]]
    command = getattr(command, "commands", {}).get(words[1], command)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


# `exec deploy/tuner` is kubectl's short form of a Deployment, not a path.
PATHS = sorted(set(re.findall(r"(?<!exec )deploy/[\w./-]+", "\n".join(LINES))))


@pytest.mark.parametrize("path", PATHS)
def test_every_file_named_in_a_command_is_there(path):
    assert (ROOT / path).exists()


def test_the_names_to_replace_are_where_the_commands_look_for_them():
    kustomizations = list((ROOT / "deploy/manifests").glob("*/kustomization.yaml"))
    assert len(kustomizations) == 4
    assert all("\nnamespace: llm\n" in path.read_text() for path in kustomizations)
    roles = list((ROOT / "deploy/manifests").glob("*/role.yaml"))
    assert len(roles) == 2
    assert all("resourceNames: [r1]" in path.read_text() for path in roles)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / "deploy" / target).exists(), target
