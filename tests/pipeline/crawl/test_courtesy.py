"""Whose turn it is, by a clock that the test winds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crawl import courtesy as module
from pipeline.crawl.courtesy import Courtesy


def takes(courtesy: Courtesy, now: float) -> list:
    """All that may start now."""
    taken = []
    while turn := courtesy.take(now):
        taken.append(turn[1])
    return taken


def test_a_host_has_no_more_than_its_share_and_others_go_on():
    courtesy = Courtesy(per_host=2)
    for number in range(10_000):
        courtesy.add("slow", ("slow", number))
    for number in range(3):
        courtesy.add("other", ("other", number))
    taken = takes(courtesy, 0)
    assert sorted(taken) == [("other", 0), ("other", 1), ("slow", 0), ("slow", 1)]
    assert courtesy.next_at() is None and len(courtesy) == 9_999
    courtesy.done("other")
    assert takes(courtesy, 0) == [("other", 2)]


def test_starts_are_apart_and_in_order():
    courtesy = Courtesy(per_host=9, delay_sec=2.0)
    for number in range(3):
        courtesy.add("a", number)
    assert takes(courtesy, 10.0) == [0]
    assert takes(courtesy, 11.9) == [] and courtesy.next_at() == 12.0
    assert takes(courtesy, 12.0) == [1]
    assert takes(courtesy, 14.5) == [2]


def test_hosts_take_turns():
    courtesy = Courtesy(per_host=9)
    for host in "abc":
        for number in range(3):
            courtesy.add(host, f"{host}{number}")
    order = []
    for now in range(9):
        order.append(courtesy.take(float(now))[1])
    assert order == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_a_new_host_is_met_with_one_request():
    courtesy = Courtesy(per_host=3, is_known=False)
    for number in range(5):
        courtesy.add("a", number)
    assert takes(courtesy, 0) == [0]
    courtesy.meet("a", 1.5)
    assert takes(courtesy, 1.0) == []
    assert takes(courtesy, 1.5) == [1]
    courtesy.meet("a", 0.0)  # its rules changed
    assert takes(courtesy, 3.0) == [2]
    courtesy.done("a")
    assert takes(courtesy, 3.0) == [3]


def test_a_busy_host_is_left_alone_and_comes_back_slowly():
    courtesy = Courtesy(per_host=4)
    for number in range(20):
        courtesy.add("a", number)
        courtesy.add("b", 100 + number)
    takes(courtesy, 0.0)
    courtesy.pause("a", 0.0, 5.0)
    for host in "aaaabbbb":
        courtesy.done(host)
    assert takes(courtesy, 1.0) == [104, 105, 106, 107]
    assert courtesy.next_at() == 5.0
    assert takes(courtesy, 5.0) == [4, 5]  # half as many at once
    for _ in range(2):
        courtesy.calm("a")
        courtesy.done("a")
    assert takes(courtesy, 6.0) == [6, 7]
    for _ in range(20):
        courtesy.calm("a")
    assert takes(courtesy, 6.0) == [8, 9]


def test_a_pause_that_is_too_long_gives_the_work_back_at_once():
    courtesy = Courtesy(per_host=1, max_pause_sec=60.0)
    for number in range(4):
        courtesy.add("a", number)
    assert takes(courtesy, 0.0) == [0]
    courtesy.pause("a", 0.0, 3600.0)
    assert courtesy.is_closed("a") and takes(courtesy, 0.0) == [1, 2, 3]
    for _ in range(4):
        courtesy.done("a")
    courtesy.add("a", 4)
    assert takes(courtesy, 3601.0) == [4] and not courtesy.is_closed("a")


def test_work_for_later_waits_and_then_goes_first():
    courtesy = Courtesy(per_host=1)
    courtesy.add("a", "retry", at=3.0)
    courtesy.add("a", "first")
    courtesy.add("a", "second")
    assert takes(courtesy, 0.0) == ["first"] and len(courtesy) == 2
    courtesy.done("a")
    assert courtesy.next_at() == 0.0
    assert courtesy.take(3.0) == ("a", "retry")
    courtesy.done("a")
    assert takes(courtesy, 3.0) == ["second"] and len(courtesy) == 0


def test_all_that_waits_is_handed_over():
    courtesy = Courtesy(per_host=1)
    courtesy.add("a", 1, at=9.0)
    courtesy.add("a", 2)
    courtesy.add("b", 3)
    taken = []
    courtesy.drain(taken.append)
    assert sorted(taken) == [1, 2, 3] and len(courtesy) == 0
    assert courtesy.take(10.0) is None and courtesy.next_at() is None


def test_no_pause_is_kept_for_ever():
    courtesy = Courtesy(per_host=1, max_pause_sec=60.0)
    courtesy.pause("a", 0.0, 1e9)
    courtesy.add("a", 1)
    assert courtesy.take(3599.0) == ("a", 1) and courtesy.is_closed("a")
    courtesy.done("a")
    courtesy.add("a", 2)
    assert courtesy.take(3601.0) == ("a", 2) and not courtesy.is_closed("a")
    patient = Courtesy(per_host=1, max_pause_sec=9000.0)
    patient.pause("a", 0.0, 8000.0)
    patient.add("a", 1)
    assert takes(patient, 7999.0) == [] and takes(patient, 8000.0) == [1]


def test_hosts_that_only_pause_are_forgotten_now_and_then(monkeypatch):
    monkeypatch.setattr(module, "_MAX_IDLE_HOSTS", 100)
    monkeypatch.setattr(module, "_FORGET_STEP", 20)
    looks, forget = [], Courtesy._forget
    monkeypatch.setattr(Courtesy, "_forget", lambda self: (looks.append(1), forget(self)))
    courtesy = Courtesy(per_host=1)
    courtesy.add("busy", 0)
    assert courtesy.take(0.0) == ("busy", 0)
    courtesy.pause("busy", 0.0, 50.0)
    for number in range(2000):
        host = f"{number}.test"
        courtesy.add(host, number)
        assert courtesy.take(0.0) == (host, number)
        courtesy.pause(host, 0.0, 1e9)
        courtesy.done(host)
        assert len(courtesy._hosts) <= 100
    assert len(looks) <= 2000 / 40
    courtesy.add("busy", 1)  # is in flight, and thus is known
    assert takes(courtesy, 49.0) == []


def test_where_all_hosts_are_busy_it_is_seldom_looked_whom_to_forget(monkeypatch):
    monkeypatch.setattr(module, "_MAX_IDLE_HOSTS", 100)
    monkeypatch.setattr(module, "_FORGET_STEP", 20)
    looks, forget = [], Courtesy._forget
    monkeypatch.setattr(Courtesy, "_forget", lambda self: (looks.append(1), forget(self)))
    courtesy = Courtesy(per_host=1)
    for number in range(300):
        courtesy.add(f"{number}.test", number)
    assert len(looks) == 10 and len(courtesy) == 300


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, 0.5, 2.0])), max_size=30),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.3]),
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.2, 1.0, 99.0])), max_size=5),
)
def test_all_work_is_done_once_and_never_too_much_of_a_host(work, per_host, delay, pauses):
    courtesy = Courtesy(per_host, delay, max_pause_sec=10.0)
    for number, (host, at) in enumerate(work):
        courtesy.add(host, number, at=at)
    now, seen, running, starts = 0.0, [], [], {}
    pauses = list(pauses)
    while len(courtesy) or running:
        while turn := courtesy.take(now):
            host, number = turn
            seen.append(number)
            running.append(host)
            closed = courtesy.is_closed(host)
            assert closed or running.count(host) <= per_host
            assert closed or not delay or now - starts.get(host, -1.0) >= delay - 1e-9
            starts[host] = starts.get(host, -1.0) if closed else now
            if pauses:
                courtesy.pause(pauses[0][0], now, pauses.pop(0)[1])
        if running:
            courtesy.done(running.pop(0))
        else:
            at = courtesy.next_at()
            assert at is not None
            now = max(now, at)
    assert sorted(seen) == list(range(len(work)))
