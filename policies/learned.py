"""Learned: a trained network that moves the headroom of a base rule, read from a policy bundle.

The network runs through onnxruntime on one thread; PyTorch is not needed. It never sees anything
but the codec's features, and its answer passes the codec's heads, so what acts is what was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from policies.codec import Codec, CodecConfig, Float32Array
from policies.rule import RulePolicy, RuleResult
from tuner.core.errors import BundleError, ConfigError, InputError, PermanentError
from tuner.core.knobs import KnobSpace
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import FloatArray
from tuner.data.bundles import NETWORK, Bundle, FeatureRange, Section, knob_ranges
from tuner.data.strict import build

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUT = "features"
"""Name of the network's input: `(targets, features)` float32, as the codec gives them."""
OUTPUT = "action"
"""Name of its output: `(targets, knobs)` float32 in -1..1, 0 for a knob without a head."""

PROBES = 64
"""Random inputs that a network is asked before it is trusted, beside the extreme ones."""


class BaseBuilder(Protocol):
    """Builds the base rule of a bundle: `policies.build_policy`."""

    def __call__(
        self,
        name: str,
        options: Mapping[str, float | int | str],
        knobs: KnobSpace,
        *,
        tick_s: float,
    ) -> RulePolicy: ...


@dataclass(frozen=True)
class OnnxNetwork:
    """A network in ONNX form. Travels to other processes as its bytes.

    Raises:
        BundleError: onnxruntime is not installed, or cannot read the network, or the network does
            not take `inputs` features and give `outputs` actions.
    """

    content: bytes
    source: str
    """File, for messages."""
    inputs: int
    outputs: int

    def __post_init__(self) -> None:
        self._check()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __call__(self, features: Float32Array) -> Float32Array:
        """`(n, outputs)` actions for `(n, inputs)` features; the same bits for any n."""
        (action,) = self._session.run([OUTPUT], {INPUT: features})
        answer: Float32Array = action
        return answer

    @cached_property
    def _session(self) -> InferenceSession:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise BundleError(
                f"{self.source} needs onnxruntime, which is not installed; "
                "pip install 'deepseek-tuner[live]'"
            ) from None
        options = onnxruntime.SessionOptions()
        # A few thousand multiplications: more threads cost more than they do.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised, and told in one sentence
        try:
            return onnxruntime.InferenceSession(
                self.content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common class but this one
            first_line = str(error).strip().splitlines()[0]
            raise BundleError(
                f"{self.source} is no network that onnxruntime can read ({first_line}); "
                "train the policy again"
            ) from error

    def _check(self) -> None:
        session = self._session
        found = [
            [(port.name, port.type, list(port.shape)[1:]) for port in ports]
            for ports in (session.get_inputs(), session.get_outputs())
        ]
        expected = [
            [(INPUT, "tensor(float)", [self.inputs])],
            [(OUTPUT, "tensor(float)", [self.outputs])],
        ]
        if found != expected:
            raise BundleError(
                f"{self.source} maps {found[0]} to {found[1]}; "
                f"expected {expected[0]} to {expected[1]}"
            )


@dataclass(frozen=True)
class LearnedRule:
    """A network over n targets, as a rule."""

    codec: Codec
    network: OnnxNetwork
    base_name: str
    """Name of the base rule, for people."""

    @property
    def memory_size(self) -> int:
        return self.codec.memory_size

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        """See `Rule.decide`.

        Raises:
            PermanentError: the network answers with something else than numbers.
        """
        seen = self.codec.observe(now, memory)
        action = self.network(seen.features)
        if not np.isfinite(action).all():
            raise PermanentError(f"{self.network.source}: the network's answer is not finite")
        settings, after = self.codec.act(action, now, seen)

        def why(row: int) -> str:
            return self.codec.why(row, action, now, seen, self.base_name)

        return RuleResult(
            settings=settings, raw=seen.base.raw, need=seen.base.need, memory=after, why=why
        )


def learned_policy(
    bundle: Bundle, knobs: KnobSpace, build_base: BaseBuilder, *, tick_s: float
) -> RulePolicy:
    """The policy in a bundle, for a target with these knobs.

    Settings are decoded in the ranges that the policy was trained for; the target's own bounds are
    a guardrail's business.

    Args:
        bundle: as read by `tuner.data.bundles.read_bundle`.
        knobs: the knobs of the target.
        build_base: builds the base rule.
        tick_s: seconds between two decisions.

    Raises:
        BundleError: the bundle's knobs or features are not those of this program or target, its
            codec or base rule has an unknown key, its base rule is no rule of this program, or its
            network cannot be used or answers something else than finite numbers.
    """
    manifest, source = bundle.manifest, str(bundle.path)
    _check_knobs(bundle, knobs)
    _check_base(bundle)
    trained = KnobSpace(
        tuple(
            spec.bounded(stated.low, stated.high)
            for spec, stated in zip(knobs.specs, manifest.knobs, strict=True)
        )
    )
    config = codec_config(manifest.codec, f"{source}: codec")
    try:
        base = build_base(manifest.base.policy, manifest.base.options, trained, tick_s=tick_s)
        codec = Codec(trained, base.rule, config, dict(manifest.pinned))
    except InputError as error:
        raise BundleError(f"{source}: {error}") from error
    _check_ranges(bundle, codec, knobs)
    _check_features(bundle, codec)
    network = OnnxNetwork(
        content=bundle.network,
        source=str(bundle.path / NETWORK),
        inputs=len(codec.features),
        outputs=len(knobs.names),
    )
    _check_answers(network, codec)
    return RulePolicy(manifest.title, LearnedRule(codec, network, manifest.base.policy))


def codec_config(section: Section, source: str) -> CodecConfig:
    """The codec's configuration as a manifest states it.

    Raises:
        BundleError: an unknown key, or a value that does not fit.
    """
    try:
        return build(CodecConfig, section, source, BundleError)
    except ConfigError as error:
        raise BundleError(f"{source}: {error}") from error


def codec_section(config: CodecConfig) -> Section:
    """The inverse of `codec_config`: plain values."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
    }


def feature_ranges(codec: Codec) -> tuple[FeatureRange, ...]:
    """The codec's features as a manifest states them."""
    return tuple(
        FeatureRange(spec.name, float(spec.low), float(spec.high), float(spec.missing))
        for spec in codec.features
    )


def _check_knobs(bundle: Bundle, knobs: KnobSpace) -> None:
    found = [knob.name for knob in bundle.manifest.knobs]
    if found != list(knobs.names):
        raise BundleError(
            f"{bundle.path}: knobs are {', '.join(found) or '(none)'}; "
            f"expected {', '.join(knobs.names)}, in this order; train the policy again"
        )


def _check_base(bundle: Bundle) -> None:
    """A bundle on a bundle could be one on itself, without end."""
    from policies import POLICIES  # which imports this module first

    found = bundle.manifest.base.policy
    if found not in POLICIES:
        raise BundleError(
            f"{bundle.path}: base.policy is '{found}'; expected one of {', '.join(POLICIES)}; "
            "train the policy again"
        )


def _check_answers(network: OnnxNetwork, codec: Codec) -> None:
    """Ask the network for all features low, high, missing, and PROBES draws between."""
    low, high = codec.observation_low, codec.observation_high
    missing = np.array([[spec.missing for spec in codec.features]])
    draws = np.random.default_rng(0).uniform(low, high, (PROBES, len(low)))
    features = np.concatenate([low[None, :], high[None, :], missing, draws]).astype(np.float32)
    try:
        answer = network(features)
    except Exception as error:  # onnxruntime's errors have no common class but this one
        first_line = str(error).strip().splitlines()[0]
        raise BundleError(
            f"{network.source} fails on a probe ({first_line}); train the policy again"
        ) from error
    expected = (len(features), network.outputs)
    if answer.shape != expected or not np.isfinite(answer).all():
        raise BundleError(
            f"{network.source} answers a probe of shape {features.shape} with something else than "
            f"finite numbers of shape {expected}; train the policy again"
        )


def _check_ranges(bundle: Bundle, codec: Codec, knobs: KnobSpace) -> None:
    """A head that cannot reach what the target allows would cap it silently."""
    for stated, spec in zip(knob_ranges(codec.knobs), knobs.specs, strict=True):
        if spec.name in codec.moves and not stated.low <= spec.low <= spec.high <= stated.high:
            raise BundleError(
                f"{bundle.path}: knob {spec.name} was trained for {stated.low}..{stated.high}, "
                f"but this target allows {spec.low}..{spec.high}; narrow the target's range or "
                "train the policy again"
            )


def _check_features(bundle: Bundle, codec: Codec) -> None:
    found, expected = bundle.manifest.features, feature_ranges(codec)
    if found == expected:
        return
    names = [feature.name for feature in found], [feature.name for feature in expected]
    if names[0] == names[1]:
        stated, known = next((a, b) for a, b in zip(found, expected, strict=True) if a != b)
        difference = (
            f"feature {stated.name} has the range {_range(stated)}; expected {_range(known)}"
        )
    elif gone := [name for name in names[0] if name not in names[1]]:
        difference = f"feature {gone[0]} is not known to this version"
    elif new := [name for name in names[1] if name not in names[0]]:
        difference = f"feature {new[0]} is missing"
    else:
        difference = "the features stand in another order than in this version"
    raise BundleError(f"{bundle.path}: {difference}; train the policy again")


def _range(feature: FeatureRange) -> str:
    return f"{feature.low:g}..{feature.high:g} (missing {feature.missing:g})"
