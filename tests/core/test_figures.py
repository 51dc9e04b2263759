"""Numbers as people read them."""

from __future__ import annotations

import pytest

from tuner.core.figures import figure


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0.0, "0"),
        (13.014287006693927, "13.01"),
        (0.00012345678, "0.0001235"),
        (0.00003217, "0.00003217"),
        (1234.5678, "1,235"),
        (9999.7, "10,000"),
        (123456.78, "123,457"),
    ],
    ids=["none", "zero", "rounded", "small", "smaller", "thousands", "border", "no exponent"],
)
def test_a_figure_has_four_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert figure(value) == text
