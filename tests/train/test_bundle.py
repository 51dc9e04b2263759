"""Export: the same actions from ONNX as from PyTorch, or no bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.policies import ActorCriticPolicy

from policies.codec import Codec
from policies.learned import OnnxNetwork
from tests.policies import bundles
from tuner.core.errors import ConfigError, PermanentError
from tuner.data.bundles import read_bundle
from tuner.train import bundle
from tuner.train.bundle import check_place, export, probes, write_bundle
from tuner.train.network import ActionNetwork, policy_arguments, start_at_base_rule


def network(codec: Codec, seed: int = 0) -> ActionNetwork:
    """A network with large random weights: its answers reach the clip on both sides."""
    torch.manual_seed(seed)
    policy = ActorCriticPolicy(
        Box(codec.observation_low, codec.observation_high),
        Box(-1.0, 1.0, (len(codec.moves),)),
        lambda _: 1e-3,
        use_sde=True,
        **policy_arguments((16, 16), -2.0),
    )
    torch.nn.init.normal_(policy.action_net.weight, std=0.5)
    return ActionNetwork(policy, codec).eval()


@pytest.mark.parametrize("move", [("replicas",), ("warmup_requests", "batch_size", "replicas")])
def test_onnx_answers_as_pytorch_does_on_random_and_extreme_inputs(move: tuple[str, ...]) -> None:
    codec = bundles.codec(move=move)
    trained = network(codec)
    content, error = export(trained, codec)
    assert error <= 1e-5
    exported = OnnxNetwork(content, "policy.onnx", len(codec.features), 4)
    features = probes(codec)
    assert len(features) >= 1000
    actions = exported(features)
    np.testing.assert_allclose(actions, trained.act(features), atol=1e-5, rtol=0)
    still = [column for column, name in enumerate(codec.knobs.names) if name not in move]
    assert (actions[:, still] == 0).all()
    replicas = actions[:, codec.knobs.column("replicas")]
    assert replicas.min() == -1
    assert replicas.max() == 1
    assert len(np.unique(replicas)) > 1000


def test_the_batch_size_does_not_change_a_bit_of_an_answer() -> None:
    codec = bundles.codec()
    content, _ = export(network(codec), codec)
    exported = OnnxNetwork(content, "policy.onnx", len(codec.features), 4)
    features = probes(codec)[:40]
    alone = np.concatenate([exported(features[i : i + 1]) for i in range(40)])
    assert np.array_equal(alone, exported(features))


def test_the_same_weights_give_the_same_bytes_and_no_path_of_this_machine() -> None:
    codec = bundles.codec()
    content, _ = export(network(codec), codec)
    again, _ = export(network(codec), codec)
    assert content == again
    for part in (b"site-packages", b".py", b"/home", b"/root", str(Path.cwd()).encode()):
        assert part not in content
    assert onnx.load_from_string(content).graph.input[0].name == "features"


def test_refuses_to_export_what_onnx_answers_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = bundles.codec()
    real = bundle._to_onnx
    monkeypatch.setattr(bundle, "_to_onnx", lambda _, n: real(network(codec, seed=1), n))
    with pytest.raises(PermanentError, match="differs from the trained one by"):
        export(network(codec, seed=0), codec)


def test_refuses_to_export_weights_that_are_not_finite() -> None:
    codec = bundles.codec()
    broken = network(codec)
    with torch.no_grad():
        broken.head.bias.fill_(float("nan"))
    with pytest.raises(PermanentError, match="differs from the trained one by nan"):
        export(broken, codec)


def test_a_new_network_answers_exactly_0() -> None:
    codec = bundles.codec()
    fresh = network(codec)
    start_at_base_rule_of(fresh)
    assert (fresh.act(probes(codec)) == 0).all()


def start_at_base_rule_of(net: ActionNetwork) -> None:
    class Holder:
        action_net = net.head

    start_at_base_rule(Holder())  # type: ignore[arg-type]


def test_a_bundle_appears_whole(tmp_path: Path) -> None:
    content = bundles.linear_network(36, 4)
    manifest = bundles.manifest(content)
    write_bundle(tmp_path / "deep" / "small-1.2.3", manifest, content)
    assert read_bundle(tmp_path / "deep" / "small-1.2.3").manifest == manifest
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["small-1.2.3"]


def test_a_bundle_is_never_overwritten_and_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bundles.linear_network(36, 4)
    manifest = bundles.manifest(content)
    taken = tmp_path / "taken-1.0.0"
    taken.mkdir()
    with pytest.raises(
        ConfigError, match=r"taken-1\.0\.0 exists already; bundles are never overwritten"
    ):
        write_bundle(taken, manifest, content)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle.os, "rename", full)
    with pytest.raises(
        ConfigError, match=r"new-1\.0\.0 cannot be written \(No space left on device\)"
    ):
        write_bundle(tmp_path / "new-1.0.0", manifest, content)
    assert [p.name for p in tmp_path.iterdir()] == ["taken-1.0.0"]


def test_asking_for_a_place_makes_no_folder(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "b" / "x-1.0.0")
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_place_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file; expected a folder to write x-1"):
        check_place(tmp_path / "file" / "a" / "x-1.0.0")


def test_refuses_a_place_whose_nearest_folder_is_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle.os, "access", lambda folder, _: folder != tmp_path)
    with pytest.raises(ConfigError, match="is not writable; name another place for x-1"):
        check_place(tmp_path / "a" / "x-1.0.0")
