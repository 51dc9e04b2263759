"""Tokens of a request from rates: what is known, what is not, and what cannot be."""

import numpy as np

from policies.tokens import tokens_each


def test_tokens_over_requests_where_there_are_some():
    tokens = np.array([3000.0, 0.0, 3000.0, 3000.0, np.nan, np.inf, 3000.0, 3000.0])
    requests = np.array([2.0, 2.0, 0.0, -1.0, 2.0, 2.0, np.nan, np.inf])
    expected = [1500.0, 0.0, *[np.nan] * 6]
    np.testing.assert_array_equal(tokens_each(tokens, requests, 1e5), expected)


def test_next_to_no_requests_have_no_more_tokens_than_a_cache_holds():
    few = np.array([1e-3, 1e-300, 5e-324])
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(tokens_each(np.full(3, 3000.0), few, 1e5), [1e5] * 3)
