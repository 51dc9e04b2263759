import pytest

from experiments.report.alike import alike_sentence


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (
            {
                **{"requests": "9", "completed": "9", "failed": "0", "rejected": "0"},
                **{"unfinished": "0", "prompt_tokens": "3.91 M", "clamps": "0", "trips": "0"},
            },
            "The same for every policy: 9 requests, all completed, 3.91 M prompt tokens; "
            "no failed, rejected or unfinished requests; no clamps or trips.",
        ),
        ({"requests": "9"}, "The same for every policy: 9 requests."),
        (
            {"requests": "9", "completed": "8", "failed": "1", "trips": "0"},
            "The same for every policy: 9 requests, 8 completed, 1 failed; no trips.",
        ),
        ({"rejected": "0"}, "The same for every policy: no rejected requests."),
        ({}, ""),
    ],
    ids=["all well", "one", "one failed", "nothing else alike", "none"],
)
def test_counts_that_are_alike_are_one_sentence(counts, sentence):
    assert alike_sentence(counts) == sentence
