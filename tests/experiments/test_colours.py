import itertools

import numpy as np
import pytest

from experiments.report.colours import DASHES, FIXED, OTHERS, colours_of, outline, token

PAPER = {"light": "#ffffff", "dark": "#111417"}
"""--paper of style.css."""
EVERY = [*FIXED.items(), *((f"bundle {place}", look) for place, look in enumerate(OTHERS))]

# Dichromacies of full severity on linear RGB: Machado, Oliveira and Fernandes, "A physiologically-
# based model for simulation of color vision deficiency", IEEE TVCG 15(6), 2009.
SEEN_BY = {
    "everyone": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
# OKLab: Ottosson, "A perceptual color space for image processing", 2020.
LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def linear(colour):
    shares = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    return LAB @ np.cbrt(LMS @ np.clip(rgb, 0, 1))


def contrast(one, other):
    """WCAG 2.2's contrast ratio."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def test_the_arithmetic_knows_black_white_and_red():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert lab(linear("#ffffff")) == pytest.approx([1, 0, 0], abs=1e-3)
    assert lab(linear("#ff0000")) == pytest.approx([0.628, 0.2249, 0.1258], abs=1e-3)


@pytest.mark.parametrize("theme", PAPER)
@pytest.mark.parametrize(("name", "look"), EVERY, ids=[name for name, _ in EVERY])
def test_stands_out_from_the_paper(theme, name, look):
    assert contrast(getattr(look, theme), PAPER[theme]) >= 3


@pytest.mark.parametrize("theme", PAPER)
@pytest.mark.parametrize("eyes", SEEN_BY)
def test_no_two_are_alike_to_any_eyes(theme, eyes):
    seen = {name: lab(SEEN_BY[eyes] @ linear(getattr(look, theme))) for name, look in EVERY}
    distance = {
        pair: 100 * float(np.linalg.norm(seen[pair[0]] - seen[pair[1]]))
        for pair in itertools.combinations(seen, 2)
    }
    nearest = min(distance, key=lambda pair: distance[pair])
    # 2 is about the least that people tell apart side by side.
    assert distance[nearest] >= 5, (nearest, distance[nearest])


def test_a_symbol_belongs_to_one_policy():
    symbols = [look.symbol for _, look in EVERY]
    assert len(set(symbols)) == len(symbols)


def test_colours_that_are_near_have_another_dash():
    for (one, first), (other, second) in itertools.combinations(EVERY, 2):
        gap = min(
            100 * float(np.linalg.norm(lab(eyes @ linear(a)) - lab(eyes @ linear(b))))
            for eyes in SEEN_BY.values()
            for a, b in ((first.light, second.light), (first.dark, second.dark))
        )
        assert gap >= 7 or first.dash != second.dash, (one, other, gap)


def test_every_look_can_be_drawn_in_the_legend_too():
    for _, look in EVERY:
        assert outline(look.symbol).startswith("M")
        assert look.dash in DASHES


def test_the_rivals_have_a_look_of_their_own():
    assert set(FIXED) == {
        *("static", "static-best", "hpa", "keda", "kpa", "aibrix-apa", "aibrix-kpa", "wva-v1"),
        *("wva-v2", "dynamo-easy", "dynamo-sla", "ray-serve", "schedule", "planner"),
        *("oracle-a", "oracle-b"),
    }


def test_a_policy_keeps_its_look_whoever_else_is_compared():
    alone, together = colours_of(["hpa"]), colours_of(["static", "mine", "hpa"])
    assert alone["hpa"] == together["hpa"] == FIXED["hpa"]
    assert together["mine"] == OTHERS[0]
    tokens = [token(name, together) for name in together]
    assert len(set(tokens)) == len(together)


def test_bundles_differ_from_one_another():
    names = [f"r{number}-1.0.0" for number in range(len(OTHERS))]
    assert len(set(colours_of(names).values())) == len(OTHERS)
