from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from tuner.core.errors import ConfigError
from tuner.data.strict import build, parse_yaml, read_text

FORBID = {"extra": "forbid"}


@dataclass(frozen=True)
class Inner:
    __pydantic_config__: ClassVar[Mapping[str, str]] = FORBID

    rate: float = 1.0


@dataclass(frozen=True)
class Outer:
    __pydantic_config__: ClassVar[Mapping[str, str]] = FORBID

    name: str
    count: int = 1
    inner: Inner = field(default_factory=Inner)
    parts: Mapping[str, Inner] = field(default_factory=dict)
    points: tuple[tuple[int, float], ...] = ()
    maybe: Inner | None = None
    mixed: Mapping[str, float | int | str] = field(default_factory=dict)
    rows: tuple[Inner, ...] = ()


def built(text):
    return build(Outer, parse_yaml(text, "f.yaml", ConfigError), "f.yaml", ConfigError)


def test_builds_sections_lists_and_numbers_as_people_write_them():
    value = built("name: a\ninner: {rate: 6e-5}\npoints: [[1, 2], [3, 4.5]]\nmaybe: {rate: 2}")
    assert value == Outer("a", 1, Inner(6e-5), {}, ((1, 2.0), (3, 4.5)), Inner(2.0))


def test_a_time_of_day_is_text_however_it_is_written():
    # Naive YAML 1.1: 20:00 is the number 1200, while 08:00 is text.
    text = "20:00: 08:00\n8:30: 21:15:30"
    assert parse_yaml(text, "f.yaml", ConfigError) == {"20:00": "08:00", "8:30": "21:15:30"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("count: 2", "f.yaml: name is missing; add it"),
        ("name: a\ncount: '2'", "f.yaml: count is '2'; expected a whole number"),
        ("name: a\ncount: true", "f.yaml: count is True; expected a whole number"),
        ("name: a\ncuont: 2", "f.yaml: cuont is not a known key; did you mean 'count'?"),
        ("name: a\nmaybe: {rat: 2}", "maybe.rat is not a known key; did you mean 'rate'?"),
        ("name: a\nparts: {x: {rat: 2}}", "parts.x.rat is not a known key; did you mean 'rate'?"),
        ("name: a\nrows: [{}, {rat: 2}]", "rows[1].rat is not a known key; did you mean 'rate'?"),
        ("name: a\nmixed: {x: [1]}", "f.yaml: mixed.x is [1]; expected a number or text"),
        ("name: a\nzzz: 2", "zzz is not a known key; known keys: name, count, inner"),
        ("name: a\ninner: {rate: .inf}", "inner.rate is inf; expected a finite number"),
        ("name: a\ninner: 3", "inner is 3; expected keys and values"),
        ("name: a\nname: b", "line 2 is not valid YAML (key 'name' appears twice)"),
        ("[1, 2]", "f.yaml holds list; expected keys and values"),
        ("name: [", "f.yaml: line 1 is not valid YAML"),
    ],
)
def test_says_what_is_wrong_and_what_was_expected(text, sentence):
    with pytest.raises(ConfigError) as caught:
        built(text)
    assert sentence in str(caught.value)


def test_all_mistakes_come_at_once():
    with pytest.raises(ConfigError) as caught:
        built("cuont: 2\ninner: {rate: x}")
    assert len(str(caught.value).splitlines()) == 3


def contradictions(value):
    """Every rule of these sections is broken, whatever stands in the file."""
    yield f"name is {value.name!r}; expected 'z'"
    yield f"count is {value.count}; expected 7"
    yield f"inner.rate is {value.inner.rate}; expected 7"
    yield from (f"rows[{i}].rate is {row.rate}; expected 7" for i, row in enumerate(value.rows))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\ncount: '2'", {"count is '2'", "name is 'a'", "inner.rate is 1.0"}),
        ("count: 2", {"name is missing", "count is 2", "inner.rate is 1.0"}),
        ("name: a\ncuont: 2", {"cuont is not", "name is 'a'", "inner.rate is 1.0"}),
        ("name: a\ninner: {zzz: 2}", {"inner.zzz", "name is 'a'", "count is 1", "inner.rate"}),
        ("name: a\ninner: 3", {"inner is 3", "name is 'a'", "count is 1"}),
        (
            "name: a\nrows: [3, {rate: 2}, {rate: x}]",
            {"rows[0] is 3", "rows[1].rate is 2", "rows[2].rate is 'x'", "name is 'a'"}
            | {"count is 1", "inner.rate is 1.0"},
        ),
        ("name: a\npoints: [[1]]", {"points[0][1]", "name is", "count is", "inner.rate is"}),
    ],
    ids=["type", "missing", "typo of a key", "strange key", "section", "list", "short tuple"],
)
def test_contradictions_are_told_beside_wrong_types_but_not_about_them(text, told):
    with pytest.raises(ConfigError) as caught:
        build(
            Outer,
            parse_yaml(text, "f.yaml", ConfigError),
            "f.yaml",
            ConfigError,
            contradictions=contradictions,
        )
    lines = [line.removeprefix("f.yaml: ") for line in str(caught.value).splitlines()]
    assert len(lines) == len(told)
    assert all(any(line.startswith(start) for line in lines) for start in told)


def test_a_file_that_is_no_text_is_a_sentence(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "binary", "cannot be read as text")):
        with pytest.raises(ConfigError, match=words):
            read_text(path, "a configuration in YAML", ConfigError)
