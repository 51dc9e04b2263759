from __future__ import annotations

import numpy as np

from tuner.core.slo import Slo


def test_a_request_meets_the_objectives_only_when_it_meets_every_one():
    ttft_s = np.array([2.5, 2.6, 1.0, np.nan, 1.0, 1.0])
    tpot_s = np.array([0.075, 0.01, 0.076, np.nan, np.nan, 0.0])
    met = Slo(ttft_s=2.5, tpot_s=0.075).met(ttft_s, tpot_s)
    assert met.tolist() == [True, False, False, False, False, True]
