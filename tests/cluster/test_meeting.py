"""Several hosts on a clock, a folder and processes of the test's own; `tests/e2e` has real ones."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.follower import Follower
from cluster.hosts import Host
from cluster.meeting import BEAT_S, Lead, Meeting, Order, Part, Pulse, Report
from cluster.run_files import events
from tests.cluster.hosts_world import HOSTS, World


def started(world):
    return [e for e in events(world.folder) if e["event"] == "start"]


def all_three_run(world):
    """A leader's start whose ranks run on every host."""
    world.follow("b")
    world.follow("c")
    job = world.lead().start()
    while len(world.started) < 3:
        world.sleep(0.2)
        assert job.poll() is None
    return job


def test_each_host_starts_its_part_once_and_all_leave_with_the_same_code(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, [HOSTS[0], Host("b", 2), HOSTS[2]])
    world.follow("c")
    world.follow("b")
    world.when(lambda: len(world.started) == 3, lambda: world.all_end(0))
    leader = world.lead()
    assert world.go(leader) == 0 and world.exits == {"b": 0, "c": 0}
    places = {ranks.host: (ranks.place.first, len(ranks.codes), ranks.place.world) for ranks in world.started}
    assert places == {"a": (0, 1, 4), "b": (1, 2, 4), "c": (3, 1, 4)}
    assert {(ranks.place.address, ranks.place.port) for ranks in world.started} == {
        ("10.0.0.1", world.started[0].place.port)
    }
    assert len({ranks.mark for ranks in world.started}) == 1
    assert leader.supervisor.ranks == 4


def test_a_dead_rank_anywhere_ends_all_and_all_begin_again(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    world.follow("b")
    world.follow("c")
    world.when(lambda: len(world.started) == 3, lambda: world.of("c")[0].end(137))
    world.when(lambda: len(world.started) == 6, lambda: world.of("a")[1].end(1))
    world.when(lambda: len(world.started) == 9, lambda: world.all_end(0))
    assert world.go(world.lead()) == 0
    assert all(None not in ranks.codes for ranks in world.started), "none of an earlier start lives on"
    assert [e["ranks"] for e in started(world)] == [3, 3, 3]


def test_a_follower_that_begins_anew_costs_one_start_and_never_takes_up_the_old_order(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    world.follow("b")
    world.follow("c")
    world.when(lambda: len(world.started) == 3, lambda: world.follow("b"))
    world.when(lambda: len(world.started) == 6, lambda: world.all_end(0))
    assert world.go(world.lead()) == 0
    assert [len(world.of(name)) for name in "abc"] == [2, 2, 2]
    assert [e["host"] for e in events(tmp_path) if e["event"] == "host lost"] == ["b"]


def test_a_host_that_has_just_died_is_not_taken_for_alive(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    world.follow("b")
    world.follow("c")
    died = []
    world.when(lambda: len(world.started) == 3, lambda: world.of("c")[0].end(1))
    # It has just said that its ranks have ended, as the leader asked for.
    world.when(lambda: None not in world.of("b")[0].codes, lambda: (world.die("b"), died.append(world.now)))
    world.when(lambda: world.now > died[0] + 10, lambda: world.follow("b"))
    world.when(lambda: len(world.started) == 6, lambda: world.all_end(0))
    assert world.go(world.lead()) == 0
    assert [e["ranks"] for e in started(world)] == [3, 3]


def test_ranks_that_a_kill_did_not_reach_end_with_the_next_start(tmp_path, monkeypatch):
    world, meeting = World(tmp_path, monkeypatch), Meeting(tmp_path)
    world.follow("b")
    parts = {"a": Part(0, 1, "lead"), "b": Part(1, 1, world.followers["b"].life)}
    for number, there in ((1, parts), (2, {"a": parts["a"]})):
        meeting.give(Order(number, "lead", "start", "a", 1, len(there), there))
        meeting.say(Lead("a", "lead", number, "", number))
        world.sleep(BEAT_S)
    assert world.of("b")[0].codes == [137]


def test_a_silent_host_is_lost_the_largest_fitting_set_goes_on_and_it_may_come_back(tmp_path, monkeypatch):
    hosts = [*HOSTS, Host("d", 1)]
    world = World(tmp_path, monkeypatch, hosts)
    for name in "bcd":
        world.follow(name)
    world.when(lambda: len(world.started) == 4, lambda: world.die("c"))  # its ranks too, without a word
    world.when(lambda: len(world.started) == 6, lambda: world.follow("c"))
    world.when(lambda: len(world.followers) == 3 and world.now > 200, lambda: world.of("b")[1].end(137))
    world.when(lambda: len(world.started) == 10, lambda: world.all_end(0))
    assert world.go(world.lead(fits=lambda ranks: 4 % ranks == 0)) == 0
    assert [e["hosts"] for e in started(world)] == [list("abcd"), list("ab"), list("abcd")]
    assert world.exits == {"b": 0, "c": 0, "d": 0}, "who had no part leaves with the others"


def test_without_elastic_a_lost_host_is_waited_for(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    world.follow("b")
    world.follow("c")
    world.when(lambda: len(world.started) == 3, lambda: world.die("b"))
    world.when(lambda: world.now > 1_000, lambda: world.follow("b"))
    world.when(lambda: len(world.started) == 6, lambda: world.all_end(0))
    assert world.go(world.lead(elastic=False)) == 0
    assert [e["ranks"] for e in started(world)] == [3, 3]
    assert any("waiting for b" in words for words in world.told)


def test_the_first_start_waits_longer_for_hosts_that_nobody_has_begun_yet(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    world.follow("c")
    world.when(lambda: world.now > 150, lambda: world.follow("b"))
    world.when(lambda: len(world.started) == 3, lambda: world.all_end(0))
    assert world.go(world.lead()) == 0 and len(started(world)) == 1


def test_who_has_never_reported_is_given_up_in_the_end(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    world.follow("c")
    world.when(lambda: len(world.started) == 2, lambda: world.all_end(0))
    assert world.go(world.lead()) == 0
    assert [e["hosts"] for e in started(world)] == [["a", "c"]] and world.now > 160


def test_a_dead_leader_costs_the_followers_their_ranks_and_a_new_one_goes_on(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    job = all_three_run(world)
    assert job.poll() is None
    world.of("a")[0].kill()  # with its supervisor, and so nobody beats or gives orders any more
    world.sleep(10.0)
    assert world.of("b")[0].poll() is None, "not at once: it may only be slow"
    for _ in range(120):
        world.sleep(0.2)
    assert world.of("b")[0].poll() == world.of("c")[0].poll() == 137
    assert any("no sign of life" in words for words in world.told) and not world.exits
    world.when(lambda: len(world.started) == 6, lambda: world.all_end(0))
    assert world.go(world.lead()) == 0 and world.exits == {"b": 0, "c": 0}


def test_a_leader_that_comes_back_at_once_ends_the_ranks_of_its_old_life(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    all_three_run(world)
    world.of("a")[0].kill()
    world.die("c")
    world.when(lambda: None not in world.of("b")[0].codes, lambda: world.follow("c"))  # while c is waited for
    world.when(lambda: len(world.started) == 6, lambda: world.all_end(0))
    assert world.go(world.lead()) == 0
    assert world.of("b")[0].codes == [137]


def test_orders_of_earlier_lives_start_nothing(tmp_path, monkeypatch):
    """A folder as a run leaves it that died in the middle: an order to start, and a leader's last sign of life."""
    meeting = Meeting(tmp_path)
    order = Order(7, "old", "start", "a", 1, 3, {name: Part(0, 1, f"old-{name}") for name in "abc"})
    meeting.give(order)
    meeting.say(Lead("a", "old", 90, "", order=7, known=["old-b"], ended=None))
    meeting.say(Report("c", "old-c", 3, 1, "old", 7))
    world = World(tmp_path, monkeypatch)
    world.follow("b")
    for _ in range(50):
        world.sleep(0.5)
    assert not world.started and not world.exits
    ended = Lead("a", "old", 91, "", order=7, known=["old-b"], ended=0)
    Meeting(tmp_path).say(ended)
    world.sleep(2.0)
    assert not world.exits, "yesterday's end is none of today's"
    world.follow("c")
    world.when(lambda: len(world.started) == 3, lambda: world.all_end(75))
    assert world.go(world.lead()) == 75 and world.exits == {"b": 75, "c": 75}
    assert started(world)[0]["order"] == 8, "numbers go on"


def test_a_wish_to_stop_reaches_all_ranks_and_all_leave(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    world.follow("b")
    world.follow("c")
    leader = world.lead()
    world.when(lambda: len(world.started) == 3, lambda: leader.supervisor._on_signal(10, None))
    world.when(lambda: all(ranks.signals for ranks in world.started), lambda: world.all_end(75))
    assert world.go(leader) == 75 and world.exits == {"b": 75, "c": 75}
    assert [ranks.signals for ranks in world.started] == [[10], [10], [10]]


def test_a_follower_that_is_asked_to_stop_stops_the_run(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    world.follow("b")
    world.follow("c")
    world.when(lambda: len(world.started) == 3, lambda: world.followers["b"]._on_signal(15, None))
    world.when(lambda: world.of("b")[0].signals == [15], lambda: world.all_end(75))
    assert world.go(world.lead()) == 75 and world.exits == {"b": 75, "c": 75}


def test_a_follower_without_ranks_leaves_when_asked_to_and_is_not_waited_for(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    world.follow("b")
    world.sleep(1.0)
    world.followers["b"]._on_signal(15, None)
    world.sleep(1.0)
    assert world.exits == {"b": 75}


def test_a_wish_or_a_stop_file_ends_the_waiting_for_hosts(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    leader = world.lead()
    world.when(lambda: world.now > 120, lambda: leader.supervisor._on_signal(15, None))
    assert leader.supervisor.supervise() == 75
    (tmp_path / "STOP").touch()
    assert world.lead().supervisor.supervise() == 75
    assert "STOP asks this run not to train" in events(tmp_path)[-1]["words"]


def test_followers_with_other_settings_or_another_leader_are_refused(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    world.follow("b", settings="other")
    leader = world.lead()
    with pytest.raises(ClusterError, match="other settings of the model"):
        leader.start()
    follower = Follower(tmp_path, HOSTS[1], "z", world.begin("b"), clock=world.clock)
    world.followers["b"] = follower
    with pytest.raises(ClusterError, match="a leads this run, and the host file here begins with z"):
        leader.start()


def test_two_processes_are_not_the_same_host(tmp_path):
    meeting, other = Meeting(tmp_path), Meeting(tmp_path)
    with (
        meeting.as_host("a"),
        pytest.raises(ClusterError, match="is the host a of this run already"),
        other.as_host("a"),
    ):
        pass
    meeting.say(Lead("a", "one", 1, ""))
    other.say(Lead("a", "two", 1, ""))  # where flock does not reach over the network
    with pytest.raises(ClusterError, match="Another process is the host a"):
        meeting.say(Lead("a", "one", 2, ""))


def test_a_host_that_cannot_start_its_ranks_says_so(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, HOSTS[:2])
    world.follow("b")

    def refuse(*_):
        raise ClusterError("Rank 1 could not be started.")

    world.followers["b"]._begin = refuse
    assert world.go(world.lead(budget=1)) == 1
    assert any("Rank 1 could not be started" in words for words in world.told)
    assert world.exits == {"b": 1}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"life": "x"}', '{"host": "b", "unknown": 1}'])
def test_what_is_torn_or_foreign_is_not_there(tmp_path, text):
    meeting = Meeting(tmp_path)
    for name in ("leader.json", "host-b.json", "start-000001.json"):
        (tmp_path / "hosts" / name).write_text(text)
    assert meeting.lead() == (None, "") and meeting.report("b") == (None, "") and meeting.order(1) is None
    order = Order(2, "l", "start", "a", 1, 1, {"a": Part(0, 1, "x")})
    assert meeting.give(order) and meeting.order(2) == order and meeting.last_number() == 2


def test_a_full_disk_is_no_silence(tmp_path, monkeypatch):
    meeting, sign = Meeting(tmp_path), Lead("a", "one", 1, "")
    meeting.say(sign)
    before = meeting.lead()[1]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(meeting, "_replace", full)
    meeting.say(dataclasses.replace(sign, beat=2))
    found, stamp = meeting.lead()
    assert found == sign and stamp != before
    assert not meeting.give(Order(1, "one", "start", "a", 1, 1, {}))


@given(st.lists(st.tuples(st.floats(0.0, 500.0), st.booleans()), min_size=1, max_size=30))
def test_a_process_that_did_not_look_has_not_seen_silence(looks):
    """Silence is at most two beats a look, and none right after a sign."""
    pulse, now, beat, since = Pulse(), 0.0, 0, 0
    for gap, lives in looks:
        now, beat = now + gap, beat + lives
        pulse.look(f"life-{beat}", now)
        since = 0 if lives else since + 1
        assert pulse.silent_s <= 2 * BEAT_S * since
    assert pulse.beats == sum(lives for _, lives in looks[1:])
