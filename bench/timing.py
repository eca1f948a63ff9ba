"""Two ways of doing the same, timed side by side in one process."""

import statistics
import time


def duel(candidate, baseline, times, clock=time.perf_counter):
    """Compare two functions that return a tensor: one untimed run each, then ``times`` pairs, each side first in turn.

    Returns the columns "seconds" and "baseline seconds" (medians), "ratio" (the median of the pairs' own ratios, so that a
    machine that slows down slows both), "low" and "high" (its quartiles), and "difference": the norm of the difference of
    the two results over that of the baseline's. times is 2 or more.
    """
    first, expected = candidate(), baseline()
    pairs = []
    for i in range(times):
        seconds = {}
        for function in (candidate, baseline) if i % 2 else (baseline, candidate):
            began = clock()
            function()
            seconds[function] = clock() - began
        pairs.append((seconds[candidate], seconds[baseline]))
    low, middle, high = statistics.quantiles([ours / theirs for ours, theirs in pairs], n=4, method="inclusive")
    return {
        "seconds": statistics.median(ours for ours, _ in pairs),
        "baseline seconds": statistics.median(theirs for _, theirs in pairs),
        "ratio": middle,
        "low": low,
        "high": high,
        "difference": relative_error(first, expected),
    }


def relative_error(result, reference):
    """|result - reference| / |reference|, Euclidean norms over everything."""
    return float((result - reference).double().norm() / reference.double().norm())
