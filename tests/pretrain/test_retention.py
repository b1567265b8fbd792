"""Which checkpoints are kept, by rules."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pretrain.config import CheckpointConfig
from pretrain.retention import kept

LOSSES = {100: 3.0, 200: 2.0, 300: 2.5, 400: None, 500: 2.6, 600: 2.7}


def keeps(**rules) -> list[int]:
    return sorted(kept(LOSSES.items(), CheckpointConfig(**rules)))


def test_each_rule_by_itself_and_all_together():
    assert keeps(keep=2) == [500, 600]
    assert keeps(keep=1, keep_every=200) == [200, 400, 600]
    assert keeps(keep=1, keep_best=2) == [200, 300, 600]
    assert keeps(keep=2, keep_every=300, keep_best=1) == [200, 300, 500, 600]
    assert kept([], CheckpointConfig()) == set()


def test_of_equal_losses_the_older_is_the_better():
    assert kept([(1, 2.0), (2, 2.0), (3, 9.0)], CheckpointConfig(keep=1, keep_best=1)) == {1, 3}


def test_a_loss_that_is_no_number_is_not_the_best():
    assert kept([(1, float("nan")), (2, 2.0), (3, 9.0)], CheckpointConfig(keep=1, keep_best=1)) == {2, 3}


@given(
    st.dictionaries(st.integers(1, 60), st.one_of(st.none(), st.floats(0, 9)), max_size=20),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(0, 4),
)
def test_pruning_one_by_one_keeps_what_pruning_at_once_keeps(losses, keep, every, best):
    rules = CheckpointConfig(keep=keep, keep_every=every, keep_best=best)
    alive: dict[int, float | None] = {}
    for step in sorted(losses):
        alive[step] = losses[step]
        chosen = kept(alive.items(), rules)
        alive = {s: loss for s, loss in alive.items() if s in chosen}
        assert step in alive, "the newest is always kept"
    assert set(alive) == kept(losses.items(), rules)
