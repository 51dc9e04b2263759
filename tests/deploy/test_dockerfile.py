"""The image's recipe, held against the project; it is built where a registry can be reached."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = {"torch", "stable-baselines3", "gymnasium", "onnx", "onnxscript", "optuna", "tensorboard"}
"""What training needs and the controller does not."""


def instructions(word: str) -> list[str]:
    return re.findall(rf"^{word} (.*)$", DOCKERFILE, flags=re.MULTILINE)


def copied() -> list[str]:
    """What is copied from the repository."""
    lines = [line for line in instructions("COPY") if not line.startswith("--from")]
    return [word for line in lines for word in line.split()[:-1]]


def installed_with(requirements: list[str]) -> set[str]:
    """Names of everything that these bring along, as installed here."""
    found: set[str] = set()
    waiting = [(Requirement(each), "") for each in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        wanted = requirement.extras or {""}
        for each in metadata.requires(name) or []:
            waiting += [(Requirement(each), own) for own in wanted]
    return found


def test_everything_that_is_copied_exists_and_nothing_is_forgotten():
    for name in copied():
        assert (ROOT / name).exists(), name
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {*packages, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert set(copied()) == needed


def test_what_is_copied_is_let_through_to_the_build():
    lines = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == set(copied())
    assert "*" in lines


def test_only_the_live_half_is_installed_in_the_tested_versions():
    (install,) = re.findall(r"pip install (.*?) &&", DOCKERFILE)
    assert "--constraint constraints.txt" in install
    assert "'.[live]'" in install


def test_the_live_half_brings_no_training_along():
    project = PROJECT["project"]
    live = [*project["dependencies"], *project["optional-dependencies"]["live"]]
    found = installed_with(live)
    assert {"kubernetes", "httpx", "urllib3", "sqlalchemy"} <= found
    assert not found & HEAVY


def test_it_runs_as_the_user_of_the_manifests():
    (user,) = instructions("USER")
    manifest = yaml.safe_load((ROOT / "deploy/manifests/base/deployment.yaml").read_text())
    context = manifest["spec"]["template"]["spec"]["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert "useradd --uid 10001" in DOCKERFILE


def test_two_stages_and_the_last_one_has_no_sources():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    assert re.findall(r"^COPY (.*)$", stages[1], flags=re.MULTILINE) == [
        "--from=build /opt/tuner /opt/tuner"
    ]


@pytest.mark.parametrize("line", instructions("FROM"))
def test_the_base_is_slim(line):
    assert re.match(r"python:\$\{PYTHON\}-slim", line)


def test_the_python_is_one_that_the_project_takes():
    (version,) = re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(version)
