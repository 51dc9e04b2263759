"""Bundles made by hand, without training: a linear network and an honest manifest."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from policies.codec import Codec, CodecConfig
from policies.learned import INPUT, OUTPUT, codec_section, feature_ranges
from tests.envs import worlds
from tuner.data.bundles import (
    MANIFEST,
    NETWORK,
    SCHEMA,
    BaseRule,
    Code,
    Digests,
    Manifest,
    NetworkShape,
    Results,
    Score,
    digest_of,
    knob_ranges,
    manifest_text,
    sealed,
    sha256,
)

BASE = BaseRule("hpa", {"target": 150.0})


def codec(**config: object) -> Codec:
    """With every feature there is."""
    return worlds.codec(worlds.knobs(), **{"time_of_day": True, **config})


def linear_network(inputs: int, outputs: int, weight: float = 0.1, bias: float = 0.0) -> bytes:
    """ONNX of clip(features @ W + bias, -1, 1): every feature moves every action a little."""
    rng = np.random.default_rng(3)
    matrix = (weight * rng.normal(size=(inputs, outputs))).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", [INPUT, "w", "b"], ["raw"]),
        helper.make_node("Clip", ["raw", "low", "high"], [OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["targets", inputs])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["targets", outputs])],
        [
            numpy_helper.from_array(matrix, "w"),
            numpy_helper.from_array(np.full(outputs, bias, np.float32), "b"),
            numpy_helper.from_array(np.array(-1.0, np.float32), "low"),
            numpy_helper.from_array(np.array(1.0, np.float32), "high"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def manifest(content: bytes, made: Codec | None = None) -> Manifest:
    made = made or codec()
    config = {
        "seed": 0,
        "base": asdict(BASE),
        "ppo": {"steps": 1, "hidden": [64, 64]},
        "codec": codec_section(made.config),
    }
    score = Score(reward=-1.0, attainment=0.99, replicas=3.0)
    return sealed(
        Manifest(
            schema=SCHEMA,
            name="small",
            version="1.2.3",
            trace="minutes",
            profile="small",
            seed=0,
            steps=1,
            knobs=knob_ranges(made.knobs),
            pinned=dict(made.pinned),
            features=feature_ranges(made),
            base=BASE,
            codec=codec_section(made.config),
            network=NetworkShape(len(made.features), (64, 64), "tanh", len(made.knobs.names), 0.0),
            results=Results(1, True, "it did", 4, score, score, 0.0, (0.0, 0.0)),
            digests=Digests(sha256(content), digest_of(config), "0" * 64, "f" * 64),
            code=Code(None, {"numpy": "2"}),
            config=config,
        )
    )


def write(
    folder: Path,
    *,
    made: Codec | None = None,
    content: bytes | None = None,
    change: Callable[[dict[str, Any]], object] = lambda data: None,
    by_hand: bool = False,
) -> Path:
    """A bundle in `folder`/small-1.2.3; `change` edits the manifest's plain values first.

    Codec, base rule and digests are made to fit the change, as by a program that trained so, unless
    it is an edit `by_hand`.
    """
    made = made or codec()
    if content is None:
        content = linear_network(len(made.features), len(made.knobs.names))
    data = yaml.safe_load(manifest_text(manifest(content, made)))
    before = copy.deepcopy(data)
    change(data)
    if not by_hand:
        _fit(data, before)
    path = folder / "small-1.2.3"
    path.mkdir(parents=True)
    (path / NETWORK).write_bytes(content)
    (path / MANIFEST).write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def _fit(data: dict[str, Any], before: dict[str, Any]) -> None:
    digests = data["digests"]
    for key in ("codec", "base"):
        if data[key] != before[key]:
            data["config"][key] = copy.deepcopy(data[key])
            digests["config"] = digest_of(data["config"])
    stated = {name: digest for name, digest in digests.items() if name != "manifest"}
    with suppress(ValueError):  # not finite: refused before its digest matters
        digests["manifest"] = digest_of({**data, "digests": stated})


def with_codec(made: Codec, **config: object) -> Codec:
    return replace(made, config=replace(made.config, **config))  # type: ignore[arg-type]


__all__ = ["BASE", "CodecConfig", "codec", "linear_network", "manifest", "with_codec", "write"]
