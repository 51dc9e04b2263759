"""Writing policy bundles: PyTorch to ONNX, proven equal, whole or absent.

What a bundle is and how it is read is in `tuner.data.bundles`.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from policies.codec import Codec
from policies.learned import INPUT, OUTPUT, OnnxNetwork
from tuner.core.errors import ConfigError, PermanentError
from tuner.data.bundles import MANIFEST, NETWORK, Manifest, manifest_text, name_and_version
from tuner.train.network import ActionNetwork

PARITY = 1e-5
"""Largest allowed difference of an action: a factor moves by less than a hundred-thousandth."""
PROBES = 4096
"""Random inputs of the parity check, beside the extreme ones."""


def export(network: ActionNetwork, codec: Codec) -> tuple[bytes, float]:
    """The network as ONNX, and how far its answers are from PyTorch's.

    The same weights give the same bytes.

    Raises:
        PermanentError: the two differ by more than PARITY, or an answer is not finite.
    """
    content = _to_onnx(network, len(codec.features))
    exported = OnnxNetwork(
        content=content,
        source=NETWORK,
        inputs=len(codec.features),
        outputs=len(codec.knobs.names),
    )
    features = probes(codec)
    expected, found = network.act(features), exported(features)
    error = float(np.abs(expected - found).max())
    if not error <= PARITY:
        raise PermanentError(
            f"the exported network differs from the trained one by {error:.2g} in an action; "
            f"expected at most {PARITY:.0e}, so no bundle was written"
        )
    return content, error


def probes(codec: Codec) -> NDArray[np.float32]:
    """`(inputs, features)`: random and extreme inputs, far outside the ranges too."""
    rng = np.random.default_rng(0)
    low, high = codec.observation_low, codec.observation_high
    inside = rng.uniform(low, high, (PROBES, len(low)))
    corners = np.where(rng.random((PROBES // 4, len(low))) < 0.5, low, high)
    missing = np.array([[spec.missing for spec in codec.features]])
    rows = [inside, corners, low[None, :], high[None, :], missing, 1e3 * corners[:64]]
    return np.concatenate(rows).astype(np.float32)


def write_bundle(out: Path, manifest: Manifest, network: bytes) -> None:
    """Write the bundle's folder; it appears with everything in it.

    Raises:
        ConfigError: its folder has no name for a bundle, something is there already, or its place
            cannot be written.
    """
    check_place(out)
    scratch = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        scratch.mkdir(parents=True)
        (scratch / NETWORK).write_bytes(network)
        (scratch / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
        os.rename(scratch, out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}); name another") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_place(out: Path) -> None:
    """Whether a bundle can be written there; asked before hours of training, too. Makes nothing.

    Raises:
        ConfigError: its folder has no name for a bundle, something is there already, or its place
            cannot be written.
    """
    name_and_version(out.name)
    if out.exists():
        raise ConfigError(
            f"{out} exists already; bundles are never overwritten, so name another or remove it"
        )
    nearest = next(folder for folder in out.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{nearest} is a file; expected a folder to write {out.name} into")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{nearest} is not writable; name another place for {out.name}")


def _to_onnx(network: ActionNetwork, features: int) -> bytes:
    targets = torch.export.Dim("targets")
    with _quiet():
        program = torch.onnx.export(
            network.eval(),
            (torch.zeros(2, features),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: targets},),
        )
    assert program is not None
    model = program.model_proto
    _forget_origin(model)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold source paths of the machine that trained."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in graph.initializer:
        tensor.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of optional packages and of PyTorch's own deprecations."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
