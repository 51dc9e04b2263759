"""Which Deployments serve a language model, read off their manifests: engine, model, port, GPUs.

A guess with its evidence: image and arguments say what an operator wrote, nothing more.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tuner.live.kubernetes.objects import Json, items, name_of, part


@dataclass(frozen=True)
class EngineSigns:
    """What gives an engine away, and how its command line names things."""

    words: tuple[str, ...]
    """In the image or the command line."""
    port: int
    """Where it serves unless told otherwise."""
    running: str
    """Gauge on its metrics page that no other engine has."""
    model: tuple[str, ...]
    """Arguments with the name that it serves, best first."""
    ceiling: tuple[str, ...] = ()
    """Arguments with the most sequences at once, fixed at start-up."""
    metrics_port: int | None = None
    """Where its metrics page is unless told otherwise; None: where it serves."""


SIGNS: Mapping[str, EngineSigns] = {
    # Triton first: the image of its TensorRT-LLM backend carries both names.
    "triton": EngineSigns(
        ("tritonserver",),
        8000,
        "nv_inference_pending_request_count",
        (),
        ("--max-batch-size",),
        metrics_port=8002,
    ),
    "sglang": EngineSigns(
        ("sglang",),
        30000,
        "sglang:num_running_reqs",
        ("--served-model-name", "--model-path", "--model"),
        ("--max-running-requests",),
    ),
    "tensorrt-llm": EngineSigns(
        ("trtllm", "tensorrt-llm", "tensorrt_llm"),
        8000,
        "trtllm_num_requests_running",
        ("--served_model_name",),
        ("--max_batch_size",),
    ),
    "lmdeploy": EngineSigns(
        ("lmdeploy",),
        23333,
        "lmdeploy:num_requests_running",
        ("--model-name",),
        ("--max-batch-size",),
    ),
    "vllm": EngineSigns(
        ("vllm",),
        8000,
        "vllm:num_requests_running",
        ("--served-model-name", "--model"),
        ("--max-num-active-seqs", "--max-num-seqs"),
    ),
}
"""Engine kind -> signs, in the order in which they are looked for. Names as on the engines' own
command lines and metrics pages."""

_IN_FRONT = ("router", "gateway", "proxy", "frontend", "epp")
"""In the image of what stands in front of engines and carries their name."""
_GPU = re.compile(r"^(nvidia\.com/|amd\.com/|gpu\.intel\.com/|habana\.ai/)")
"""Resources that are accelerators, MIG slices included."""


@dataclass(frozen=True)
class Serving:
    """A Deployment that looks as if it serves a model."""

    namespace: str
    deployment: str
    engine: str | None
    """None: it has GPUs, and nothing says what runs on them."""
    model: str
    """Empty: nothing says."""
    port: int | None
    gpus: int
    """Accelerators of one replica."""
    ceiling: int | None
    """Most sequences at once, where the command line says."""
    replicas: int
    evidence: tuple[str, ...]
    """Why it is taken for one, in words."""
    metrics_port: int | None = None
    """None: its metrics page is where it serves."""

    @property
    def place(self) -> str:
        return f"{self.namespace}/{self.deployment}"


def serving_of(deployment: Json) -> Serving | None:
    """What a Deployment serves; None where nothing speaks for a language model."""
    spec = part(part(part(deployment, "spec"), "template"), "spec")
    containers = items(spec, "containers")
    gpus = sum(_gpus(container) for container in containers)
    for kind, signs in SIGNS.items():
        for container in containers:
            evidence = tuple(_evidence(container, signs))
            if evidence:
                return _serving(deployment, kind, signs, container, gpus, evidence)
    if gpus == 0:
        return None
    return Serving(
        namespace=str(part(deployment, "metadata").get("namespace", "")),
        deployment=name_of(deployment),
        engine=None,
        model="",
        port=None,
        gpus=gpus,
        ceiling=None,
        replicas=int(part(deployment, "spec").get("replicas", 1) or 0),
        evidence=(f"{gpus} GPUs, and no engine that is known here",),
    )


def engine_of_page(page: str) -> str | None:
    """Whose metrics page this is; None: no engine that is known here."""
    for kind, signs in SIGNS.items():
        if re.search(rf"^{re.escape(signs.running)}[{{ ]", page, flags=re.MULTILINE):
            return kind
    return None


def _serving(
    deployment: Json,
    kind: str,
    signs: EngineSigns,
    container: Json,
    gpus: int,
    evidence: tuple[str, ...],
) -> Serving:
    words = _words(container)
    if gpus:
        evidence = (*evidence, f"{gpus} GPU{'s' if gpus > 1 else ''}")
    return Serving(
        namespace=str(part(deployment, "metadata").get("namespace", "")),
        deployment=name_of(deployment),
        engine=kind,
        model=_argument(words, signs.model) or _positional_model(words),
        port=_port(container, words, signs),
        gpus=gpus,
        ceiling=_number(_argument(words, signs.ceiling)),
        replicas=int(part(deployment, "spec").get("replicas", 1) or 0),
        evidence=evidence,
        metrics_port=_number(_argument(words, ("--metrics-port",))) or signs.metrics_port,
    )


def _evidence(container: Json, signs: EngineSigns) -> Iterator[str]:
    # Without its registry and tag: a mirror may be called anything.
    image = str(container.get("image", "")).partition("@")[0]
    if any(word in image.lower() for word in _IN_FRONT):
        return
    if any(word in image.lower() for word in signs.words):
        yield f"image {image}"
    words = _words(container)
    if any(sign in word for word in words[:4] for sign in signs.words):
        yield f"command {' '.join(words[:3])}"


def _words(container: Json) -> list[str]:
    """Command and arguments as words; a shell line is taken apart."""
    words: list[str] = []
    for each in [*(container.get("command") or []), *(container.get("args") or [])]:
        text = str(each)
        try:
            words += shlex.split(text) if " " in text else [text]
        except ValueError:
            words += text.split()
    return words


def _argument(words: Sequence[str], names: Sequence[str]) -> str:
    """The value of the first of these arguments, `--a b` or `--a=b`; empty: not given."""
    for name in names:
        for index, word in enumerate(words):
            if word == name and index + 1 < len(words):
                return words[index + 1]
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
    return ""


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _positional_model(words: Sequence[str]) -> str:
    """`vllm serve MODEL`."""
    for before, word in pairwise(words):
        if before == "serve" and not word.startswith("-"):
            return word
    return ""


def _port(container: Json, words: Sequence[str], signs: EngineSigns) -> int:
    given = _number(_argument(words, ("--port", "--http-port", "--server-port")))
    if given is not None:
        return given
    ports = items(container, "ports")
    named = [port for port in ports if str(port.get("name", "")).startswith(("http", "api"))]
    for port in (*named, *ports):
        if isinstance(port.get("containerPort"), int):
            return int(port["containerPort"])
    return signs.port


def _gpus(container: Json) -> int:
    resources = part(container, "resources")
    amounts = {**part(resources, "requests"), **part(resources, "limits")}
    return sum(int(str(v)) for k, v in amounts.items() if _GPU.match(k) and str(v).isdigit())
