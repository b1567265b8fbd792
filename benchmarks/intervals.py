"""Goodput as a function of the time between checkpoints: simulated, and by the closed form.

Daly, A higher order estimate of the optimum checkpoint interval for restart dumps (2006), equation 20: with failures
that come by an exponential law of mean M, restarts R that may fail too, work τ and a stall C, a run of useful time T
takes M e^(R/M) (e^((τ + C)/M) - 1) T/τ. The optimum is near Young's sqrt(2 C M).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def closed_form(every: float, mtbf: float, stall: float, restart: float) -> float:
    """Useful share of the wall time; all in seconds."""
    return every / (mtbf * math.exp(restart / mtbf) * math.expm1((every + stall) / mtbf))


def lifetimes(mtbf: float, count: int, seed: int) -> list[float]:
    """Times between failures."""
    draw = random.Random(seed)
    return [draw.expovariate(1.0 / mtbf) for _ in range(count)]


def simulated(every: float, lives: Sequence[float], stall: float, restart: float) -> float:
    """The useful share when failures come after these times: what follows the last whole interval is lost."""
    whole = sum(max(0, int((life - restart) // (every + stall))) for life in lives)
    return whole * every / math.fsum(lives)


def young(mtbf: float, stall: float) -> float:
    """The optimum by Young (1974), as work between two stalls."""
    return math.sqrt(2.0 * stall * mtbf)


def daly(mtbf: float, stall: float) -> float:
    """The optimum by Daly's equation 37, as work between two stalls."""
    if stall >= 2.0 * mtbf:
        return mtbf
    small = stall / (2.0 * mtbf)
    return math.sqrt(2.0 * stall * mtbf) * (1.0 + math.sqrt(small) / 3.0 + small / 9.0) - stall


def grid(low: float, high: float, count: int) -> list[float]:
    """Intervals in equal ratios."""
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def best(intervals: Sequence[float], lives: Sequence[float], stall: float, restart: float) -> float:
    """The interval with the largest simulated goodput."""
    return max(intervals, key=lambda every: simulated(every, lives, stall, restart))
