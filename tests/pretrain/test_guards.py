"""Verdicts on losses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config import GuardConfig
from pretrain.guards import Guard, Verdict
from pretrain.state import GuardState


def guard(**settings) -> Guard:
    return Guard(GuardConfig(**settings), GuardState())


def feed(judged: Guard, *losses: float) -> list[Verdict]:
    found = []
    for loss in losses:
        found.append(judged.judge(loss))
        judged.settle(found[-1], loss)
    return found


def test_what_is_not_finite_is_never_taken_whatever_the_policy():
    for policy in ("off", "skip", "rollback"):
        assert feed(guard(spike=policy), 2.0, math.nan, math.inf, -math.inf, 2.0) == [
            Verdict.TAKE,
            *[Verdict.NONFINITE] * 3,
            Verdict.TAKE,
        ]


def test_a_spike_is_seen_once_half_the_window_is_full_and_enters_no_history():
    judged = guard(spike="skip", window=8)
    assert feed(judged, 9.0, 1.0, 1.1, 1.0) == [Verdict.TAKE] * 4  # too early to tell
    assert feed(judged, 1.0, 1.1, 1.0, 1.1, 1.0, 1.1, 1.0, 1.1)[-1] is Verdict.TAKE
    before = list(judged.state.losses)
    assert feed(judged, 3.0, 1.05) == [Verdict.SPIKE, Verdict.TAKE]
    assert judged.state.losses == [*before, 1.05][-8:]
    assert judged.state.skipped == 1 and judged.state.in_a_row == 0


def test_a_flat_curve_and_falling_losses_are_no_spikes():
    assert set(feed(guard(spike="skip", window=4), *[2.0] * 10, 2.001)) == {Verdict.TAKE}
    assert set(feed(guard(spike="skip", window=16), *(8 / (1 + t) for t in range(60)))) == {Verdict.TAKE}


def test_off_keeps_no_history():
    judged = guard(spike="off", window=4)
    assert set(feed(judged, *[1.0] * 9, 100.0)) == {Verdict.TAKE}
    assert judged.state.losses == []


def test_too_many_in_a_row_exhaust_it():
    judged = guard(max_skips=2)
    feed(judged, 1.0, math.nan, math.nan)
    assert not judged.exhausted
    feed(judged, math.nan)
    assert judged.exhausted and not judged.wants_rollback(Verdict.NONFINITE)
    feed(judged, 1.0)
    assert not judged.exhausted


def test_rollbacks_have_a_budget():
    judged = guard(spike="rollback", rollbacks=1, max_skips=0)
    assert judged.wants_rollback(Verdict.SPIKE) and not judged.wants_rollback(Verdict.TAKE)
    feed(judged, math.nan)
    assert judged.wants_rollback(Verdict.NONFINITE)
    judged.state.rollbacks = 1
    assert not judged.wants_rollback(Verdict.SPIKE)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=60), st.integers(0, 59))
def test_a_resumed_guard_judges_as_the_one_that_went_on(losses, cut):
    whole = guard(spike="skip", window=6, deviations=2)
    verdicts = feed(whole, *losses)
    first = guard(spike="skip", window=6, deviations=2)
    feed(first, *losses[:cut])
    state = GuardState.model_validate_json(first.state.model_dump_json())
    assert feed(Guard(first.config, state), *losses[cut:]) == verdicts[cut:]


@pytest.mark.parametrize("changes", [{"window": 3}, {"deviations": 0}, {"max_skips": -1}, {"spike": "maybe"}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError):
        GuardConfig(**changes)


def test_where_the_data_changes_by_plan_a_rise_is_no_spike():
    judged = Guard(GuardConfig(spike="skip", window=8), GuardState(), changes={8})
    for step in range(8):
        judged.begin_step(step)
        feed(judged, 1.0 + 0.01 * (step % 2))
    judged.begin_step(8)
    assert feed(judged, 3.0, 3.1, 3.0) == [Verdict.TAKE] * 3
    assert judged.state.losses == [3.0, 3.1, 3.0]
