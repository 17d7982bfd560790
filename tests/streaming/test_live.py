"""Queues and threads; no model anywhere."""

import threading
import time

import pytest

from condiff.errors import BadValue
from condiff.streaming import Live, Newest


def test_the_newest_drive_out_the_oldest():
    queue = Newest(2)
    assert all(queue.put(i) for i in range(5))
    queue.close()
    assert list(queue) == [3, 4] and queue.dropped == 3 and not queue.put(6) and len(queue) == 0


def test_a_queue_that_keeps_everything_waits_for_room():
    queue, taken = Newest(1, keep=True), []
    reader = threading.Thread(target=lambda: taken.extend(queue))
    reader.start()
    for i in range(50):
        queue.put(i)
    queue.close()
    reader.join(timeout=10.0)
    assert taken == list(range(50)) and queue.dropped == 0


def test_what_waits_for_room_is_let_go_when_the_queue_closes():
    queue = Newest(1, keep=True)
    queue.put(0)
    done = []
    writer = threading.Thread(target=lambda: done.append(queue.put(1)))
    writer.start()
    queue.close(empty=True)
    writer.join(timeout=10.0)
    assert done == [False]


def test_a_queue_of_nothing():
    with pytest.raises(BadValue, match="at least one item"):
        Newest(0)


def test_nothing_is_lost_where_nothing_may_be_dropped():
    live = Live(range(40), lambda i: 10 * i, drop=False)
    assert list(live) == [10 * i for i in range(40)]
    assert not live.running
    pace = live.pace
    assert (pace.received, pace.dropped, pace.out) == (40, 0, 40) and pace.rate > 0.0
    assert 0.0 <= pace.latency <= pace.latency_95


def test_while_the_work_is_slow_the_newest_frame_wins():
    seen, gate, started = [], threading.Event(), threading.Event()

    def camera():
        yield 0
        started.wait(10.0)  # 0 is being worked on
        yield from range(1, 100)
        gate.set()

    def work(i):
        started.set()
        gate.wait(10.0)
        seen.append(i)
        return i

    out = list(Live(camera(), work))
    assert seen[0] == 0 and seen[-1] == 99 and len(seen) <= 3
    assert out[-1] == 99


def test_leaving_the_loop_stops_both_threads():
    stopped = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            stopped.set()

    live = Live(endless(), lambda i: i)
    with live:
        for _, _ in zip(range(3), live, strict=False):
            pass
    assert not live.running


@pytest.mark.parametrize("where", ["reading", "work"])
def test_what_goes_wrong_is_raised_where_pictures_are_taken(where):
    def frames():
        yield 1
        if where == "reading":
            raise OSError("the camera is gone")
        yield 2

    def work(i):
        if where == "work":
            raise OSError("the model is gone")
        return i

    live = Live(frames(), work, drop=False)
    with pytest.raises(OSError, match="is gone"):
        list(live)
    assert not live.running


def test_latency_counts_the_frames_between_a_frame_and_its_picture():
    def slow():
        for i in range(6):
            time.sleep(0.02)
            yield i

    late = []

    def work(i):  # as a stream of three steps: the picture of two frames before
        late.append(i)
        return late[-3] if len(late) > 2 else None

    live = Live(slow(), work, drop=False)
    assert list(live) == [0, 1, 2, 3]
    assert live.pace.latency >= 0.03  # two frames of 0.02 s
