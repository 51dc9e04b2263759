"""Policy bundles: a folder with a network and a manifest, checked before anything of it runs.

    NAME-MAJOR.MINOR.PATCH/
        policy.onnx       the network; nothing pickled is ever loaded
        manifest.yaml     schema tuner.bundle/1: what goes in, what comes out, where it is from

Read here are the folder, the digests and the shape of the manifest; whether knobs and features are
those of this program is checked by `policies.learned`, which knows them. Bundles are written by
`tuner.train.bundle`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from tuner.core.errors import BundleError, ConfigError
from tuner.core.knobs import KnobSpace
from tuner.data.strict import build, parse_yaml, read_text

SCHEMA: Literal["tuner.bundle/1"] = "tuner.bundle/1"
MANIFEST = "manifest.yaml"
NETWORK = "policy.onnx"

MAX_NETWORK_BYTES = 32 * 2**20
"""A policy has some ten thousand weights; a file a thousand times that is something else."""
MAX_MANIFEST_BYTES = 2**20

Section = Mapping[str, object]
"""Plain values of a manifest that the module they belong to reads: numbers, text, lists."""

_FORBID: Mapping[str, str] = {"extra": "forbid"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TITLE = re.compile(f"({_NAME.pattern})-({_VERSION.pattern})")
_TAKEN_FROM_ENV = {
    "tick_s": ("env", "tick_s"),
    "ttft_objective_s": ("env", "slo", "ttft_s"),
    "tpot_objective_s": ("env", "slo", "tpot_s"),
}
"""Keys of the codec that training fills in -> where they stand in its configuration."""


@dataclass(frozen=True)
class KnobRange:
    """One knob in the order of the action vector, with the range it was trained for."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    name: str
    low: int
    high: int
    default: int


@dataclass(frozen=True)
class FeatureRange:
    """One feature in the order of the network's input; its range is the normalisation too."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    name: str
    low: float
    high: float
    missing: float
    """Value where the field behind it is not measured."""


@dataclass(frozen=True)
class BaseRule:
    """The rule whose headroom the policy moves, as `policies.build_policy` takes it."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    policy: str
    options: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkShape:
    """What `policy.onnx` holds: `(targets, inputs)` float32 to `(targets, outputs)` float32."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    inputs: int
    hidden: tuple[int, ...]
    activation: str
    outputs: int
    parity_error: float
    """Largest difference between the exported network and the trained one, on random and extreme
    inputs, in action units."""


@dataclass(frozen=True)
class Digests:
    """SHA-256 of what the policy is and of what it was made from, in hexadecimal."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    network: str
    """Of the file policy.onnx."""
    config: str
    """Of `config` in the manifest, see `digest_of`."""
    trace: str
    """Of the columns of the training trace."""
    profile: str
    """Of the serving profile."""
    manifest: str = ""
    """Of the manifest without this field, see `sealed`."""


@dataclass(frozen=True)
class Score:
    """How a policy did over the scenarios of an evaluation."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    reward: float
    """Mean per tick, dimensionless."""
    attainment: float
    """Share (0-1) of the requests that met every objective."""
    replicas: float
    """Mean replicas held, ready or not."""


@dataclass(frozen=True)
class Results:
    """What training came to, on scenarios that it had not seen and was not chosen by."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    chosen_step: int
    """Training step of the network in the bundle; 0 is the base rule with factor 1."""
    beats_base: bool
    """Whether a trained network did better than the base rule alone."""
    verdict: str
    """The same in a sentence, with figures."""
    scenarios: int
    policy: Score
    """Of the best trained network, even where the base rule was shipped."""
    base: Score
    """Of the base rule alone, on the same scenarios."""
    difference: float
    """Reward of policy - base, mean over scenarios."""
    difference_ci95: tuple[float, float]
    """Bootstrap over scenarios; they share one load, so the interval is a lower bound of doubt."""


@dataclass(frozen=True)
class Code:
    """What trained the policy."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    commit: str | None
    """Git commit, None outside a repository."""
    versions: Mapping[str, str]
    """Package -> version."""


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.yaml."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    schema: Literal["tuner.bundle/1"]
    name: str
    version: str
    """MAJOR.MINOR.PATCH."""
    trace: str
    """Name of the training trace."""
    profile: str
    """Name of the serving profile."""
    seed: int
    steps: int
    """Environment steps trained."""
    knobs: tuple[KnobRange, ...]
    pinned: Mapping[str, str]
    """Knob that could not move in training -> why."""
    features: tuple[FeatureRange, ...]
    base: BaseRule
    codec: Section
    """`policies.codec.CodecConfig`."""
    network: NetworkShape
    results: Results
    digests: Digests
    code: Code
    config: Section
    """The whole training configuration."""

    @property
    def title(self) -> str:
        """Name and version, as the folder is called."""
        return f"{self.name}-{self.version}"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are complete and whose digests are right."""

    path: Path
    manifest: Manifest
    network: bytes
    """policy.onnx, the very bytes whose digest was checked."""
    digest: str
    """SHA-256 of manifest.yaml, which holds the digest of the network: stands for the whole."""


def read_bundle(path: str | Path) -> Bundle:
    """The bundle in a folder.

    Raises:
        BundleError: a file is missing or too large; the manifest has an unknown schema or key or a
            value of the wrong kind; two parts of it contradict each other; a digest is not that of
            the content.
    """
    folder = Path(path)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise BundleError(
            f"{folder} {found}; expected a bundle, the folder that `tuner train --out` writes"
        )
    path = folder / MANIFEST
    manifest, digest = _read_manifest(path)
    network = _read_network(folder / NETWORK)
    _check_digest(folder / NETWORK, sha256(network), manifest.digests.network)
    config, whole = digest_of(manifest.config), sealed(manifest).digests.manifest
    _check_digest(f"{path}: config", config, manifest.digests.config)
    _check_digest(f"{path}: the manifest", whole, manifest.digests.manifest)
    return Bundle(path=folder, manifest=manifest, network=network, digest=digest)


def name_and_version(title: str) -> tuple[str, str]:
    """Name and version in the name of a bundle's folder, both as the reader takes them.

    Raises:
        ConfigError: it is not NAME-MAJOR.MINOR.PATCH.
    """
    found = _TITLE.fullmatch(title)
    if found is None:
        raise ConfigError(
            f"a bundle cannot be called {title!r}; expected NAME-MAJOR.MINOR.PATCH, for example "
            "mine-1.0.0, the name of letters, digits, dots, dashes and underscores"
        )
    return found[1], found[2]


def find_bundles(folder: Path) -> list[Path]:
    """Bundles that lie directly in a folder, or the folder itself if it is one, by name.

    Raises:
        BundleError: there is no such folder.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder} is no folder; expected one that holds policy bundles")
    if (folder / MANIFEST).is_file():
        return [folder]
    return sorted(entry.parent for entry in folder.glob(f"*/{MANIFEST}"))


def manifest_text(manifest: Manifest) -> str:
    """The manifest as YAML, keys in the order of its fields, a line per knob and feature."""
    return yaml.safe_dump(
        _plain(manifest), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )


def sealed(manifest: Manifest) -> Manifest:
    """The manifest with its own digest: of all that it says but that digest.

    It shows damage and edits by hand. It is no signature: whoever can write the folder can seal it
    again.
    """
    plain = _plain(manifest)
    del plain["digests"]["manifest"]
    return replace(manifest, digests=replace(manifest.digests, manifest=digest_of(plain)))


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def digest_of(section: Section) -> str:
    """SHA-256 of plain values, whatever the order of keys and the layout of the file."""
    text = json.dumps(section, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode())


def knob_ranges(knobs: KnobSpace) -> tuple[KnobRange, ...]:
    """A knob space as a manifest states it."""
    return tuple(KnobRange(s.name, s.low, s.high, s.default) for s in knobs.specs)


def _plain(manifest: Manifest) -> dict[str, Any]:
    """Through JSON, so that tuples become lists and nothing but plain values is left."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(manifest), allow_nan=False))
    return plain


def _read_manifest(path: Path) -> tuple[Manifest, str]:
    _check_size(path, MAX_MANIFEST_BYTES)
    text = read_text(path, "a manifest in YAML", BundleError)
    _refuse_aliases(text, path)
    data = parse_yaml(text, str(path), BundleError, hint=f" (schema: {SCHEMA})")
    if data.get("schema") != SCHEMA:
        raise BundleError(
            f"{path}: schema is {data.get('schema')!r}; expected {SCHEMA!r}, so update tuner or "
            "train the policy again"
        )
    manifest = build(Manifest, data, str(path), BundleError, contradictions=_contradictions)
    return manifest, sha256(text.encode())


def _refuse_aliases(text: str, path: Path) -> None:
    """A few nested YAML aliases grow into gigabytes; a manifest has no use for any."""
    try:
        alias = next((e for e in yaml.parse(text) if isinstance(e, yaml.AliasEvent)), None)
    except yaml.YAMLError:
        return  # told with its line by the reader that follows
    if alias is not None:
        line = alias.start_mark.line + 1 if alias.start_mark else 0
        raise BundleError(f"{path}: line {line} holds a YAML alias; expected plain values")


def _read_network(path: Path) -> bytes:
    _check_size(path, MAX_NETWORK_BYTES)
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from error


def _check_size(path: Path, most: int) -> None:
    if not path.is_file():
        raise BundleError(
            f"{path} is missing; a bundle holds {MANIFEST} and {NETWORK}, so copy the whole folder"
        )
    size = path.stat().st_size
    if size > most:
        raise BundleError(f"{path} has {size} bytes; expected at most {most}")


def _check_digest(what: Path | str, found: str, expected: str) -> None:
    if found != expected:
        raise BundleError(
            f"{what} has SHA-256 {found}, but the manifest says {expected}; the bundle was changed "
            "or damaged after training, so copy it again or train anew"
        )


def _contradictions(manifest: Manifest) -> Iterator[str]:
    if not _NAME.fullmatch(manifest.name):
        yield f"name is {manifest.name!r}; expected letters, digits, dots, dashes, underscores"
    if not _VERSION.fullmatch(manifest.version):
        yield f"version is {manifest.version!r}; expected MAJOR.MINOR.PATCH"
    for name, digest in asdict(manifest.digests).items():
        if not _DIGEST.fullmatch(digest):
            yield f"digests.{name} is {digest!r}; expected 64 hexadecimal digits"
    for kind, names in (
        ("knobs", [knob.name for knob in manifest.knobs]),
        ("features", [feature.name for feature in manifest.features]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"{kind} names {twice[0]!r} twice"
    for knob in manifest.knobs:
        if not knob.low <= knob.default <= knob.high:
            yield (f"knobs.{knob.name}: default {knob.default} is outside {knob.low}..{knob.high}")
    shape = manifest.network
    if shape.inputs != len(manifest.features):
        yield f"network.inputs is {shape.inputs}; expected {len(manifest.features)}, one a feature"
    if shape.outputs != len(manifest.knobs):
        yield f"network.outputs is {shape.outputs}; expected {len(manifest.knobs)}, one a knob"
    yield from _departures(manifest)


def _departures(manifest: Manifest) -> Iterator[str]:
    """What the manifest says twice, once of itself and once in `config`, must be the same."""
    twice: list[tuple[str, object, tuple[str, ...]]] = [
        ("seed", manifest.seed, ("seed",)),
        ("base.policy", manifest.base.policy, ("base", "policy")),
        ("base.options", dict(manifest.base.options), ("base", "options")),
        ("network.hidden", list(manifest.network.hidden), ("ppo", "hidden")),
    ]
    for key, value in manifest.codec.items():
        twice.append((f"codec.{key}", value, _TAKEN_FROM_ENV.get(key, ("codec", key))))
    for name, value, keys in twice:
        stated: object = manifest.config
        for key in keys:
            stated = stated.get(key) if isinstance(stated, Mapping) else None
        if stated is not None and stated != value:
            yield f"{name} is {value!r}, but config.{'.'.join(keys)} is {stated!r}"
