"""A grid end to end on a small fleet: run, killed, resumed, told."""

import io
import json

import pytest
from rich.console import Console

from experiments.grid.__main__ import _shown, main
from experiments.grid.config import GridConfig, LoadConfig, grid_mistakes, scenarios
from experiments.report.document import Table

CONFIG = """
policies: [static, hpa]
max_gpus: 32
loads:
  - {name: quarter, hours: 0.25, qps: 3}
authority: [direct, floor]
compare:
  seeds: 2
  sweep: {static_counts: [2, 3], hpa_targets: [200, 400]}
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    config = folder / "grid.yaml"
    config.write_text(CONFIG)
    assert main([str(config), "--out", str(folder / "out"), "--jobs", "1"]) == 0
    return folder


def test_every_scenario_has_a_row_of_each_policy(grid):
    found = json.loads((grid / "out/grid.json").read_text())
    assert list(found["scenarios"]) == ["quarter", "quarter, floor"]
    for row in found["scenarios"].values():
        assert set(row) == {"static", "hpa"}
        assert len(row["hpa"]["gpu_hours"]) == 2


def test_a_floor_only_adds(grid):
    found = json.loads((grid / "out/grid.json").read_text())["scenarios"]
    alone, raised = (found[label]["static"] for label in ("quarter", "quarter, floor"))
    for few, more in zip(alone["gpu_hours"], raised["gpu_hours"], strict=True):
        assert more > few


def test_page_and_markdown_say_the_same_verdict(grid):
    verdict = json.loads((grid / "out/grid.json").read_text())["verdict"]
    assert verdict in (grid / "out/report.md").read_text()
    page = (grid / "out/report.html").read_text()
    assert 'id="plot-profiles"' in page
    assert 'id="plot-interquartile"' in page


def test_what_is_done_is_not_run_again(grid, capsys):
    lost = grid / "out/scenarios/quarter-floor/summary.json"
    before = lost.read_text()
    lost.unlink()
    kept = grid / "out/scenarios/quarter/summary.json"
    age = kept.stat().st_mtime_ns
    assert main([str(grid / "grid.yaml"), "--out", str(grid / "out"), "--jobs", "1"]) == 0
    assert "1 of 2: quarter (done before)" in capsys.readouterr().err
    assert kept.stat().st_mtime_ns == age
    assert lost.read_text() == before


def test_another_configuration_is_another_run(grid, capsys):
    config = grid / "other.yaml"
    config.write_text(CONFIG.replace("seeds: 2", "seeds: 1").replace("[direct, floor]", "[direct]"))
    assert main([str(config), "--out", str(grid / "out2"), "--jobs", "1"]) == 0
    config.write_text(config.read_text().replace("200", "300"))
    assert main([str(config), "--out", str(grid / "out2"), "--jobs", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert "done before" not in captured.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("authority: [direct]\nburst: [tiny]", "burst"),
        ("authority: [direct]\ngpus_per_replica: [64]", "gpus_per_replica holds 64"),
        ("authority: [direct]\ncold_start_s: [-1]", "cold_start_s holds -1"),
        ("authority: [direct]\nload_scale: [0]", "load_scale holds 0"),
        ("authority: [direct]\nbaseline: keda", "baseline is 'keda'"),
        ("authority: [direct, direct]", "authority names a value twice"),
    ],
)
def test_bad_values_are_told_before_anything_runs(tmp_path, capsys, change, said):
    config = tmp_path / "grid.yaml"
    config.write_text(CONFIG.replace("authority: [direct, floor]", change))
    assert main([str(config), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_variable_that_is_not_set_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    config = tmp_path / "grid.yaml"
    config.write_text(CONFIG.replace("hours: 0.25, qps: 3", "trace: $NO_SUCH_FOLDER/a.parquet"))
    assert main([str(config), "--out", str(tmp_path / "out")]) == 2
    assert "$NO_SUCH_FOLDER/a.parquet: a variable in it is not set" in capsys.readouterr().err


def test_the_shipped_grid_lists_its_scenarios(capsys):
    assert main(["experiments/configs/grid.yaml", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4 * 2 * 3


def test_a_baseline_that_is_not_given_is_hpa_or_the_first():
    loads = (LoadConfig("day"),)
    assert list(grid_mistakes(GridConfig(("static", "keda"), loads))) == []


def test_folders_need_no_quotes_and_loads_none_that_are_alike():
    config = GridConfig(("hpa",), (LoadConfig("a b"),), cold_start_s=(480.0,), burst=("short",))
    (one,) = scenarios(config)
    assert one.label == "a b, cold start 480 s, short bursts"
    assert one.slug == "a-b-cold-start-480-s-short-bursts"
    alike = GridConfig(("hpa",), (LoadConfig("a b"), LoadConfig("a, b")))
    assert any("is there twice" in sentence for sentence in grid_mistakes(alike))


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_breaks_no_word_of_a_table(width):
    columns = ["scenario", *(f"policy-number-{place}" for place in range(9))]
    row = ["day, cold start 480 s, short bursts, unit 8, floor", *["99.73 % * / 1,322.4"] * 9]
    out = io.StringIO()
    for shown in _shown(Table(columns, [row], "title"), width):
        Console(file=out, width=width).print(shown)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert text.count("99.73 % * / 1,322.4") == 9
    for word in (*columns, "bursts,"):
        assert word in text
