"""Tickets: events in threads and in event loops, keep-alives, cancelling, failures."""

import asyncio
import threading
import time

import pytest

from llava.inference.engine import EngineDead, Piece, QueueFull, Ticket, Token, Waiting, requests


class Desk:
    """Stands in for an engine: tells places and notes who was cancelled."""

    def __init__(self, place=0):
        self.place = place
        self.cancelled = []
        self.ticket = Ticket(7, 12, place_of=lambda _: self.place, cancelled=self.cancelled.append)

    def later(self, *steps):
        """Do steps from another thread, a little later."""

        def run():
            for step in steps:
                time.sleep(0.02)
                step()

        thread = threading.Thread(target=run)
        thread.start()
        return thread


PIECES = [Piece("Hel", (Token(5),)), Piece("lo", (Token(6, -0.5, ((6, -0.5),)), Token(9)))]


async def _collect(ticket):
    return [one async for one in ticket]


READERS = {"thread": list, "loop": lambda ticket: asyncio.run(_collect(ticket))}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_pieces_come_in_order_and_end(read, monkeypatch):
    monkeypatch.setattr(requests, "KEEP_ALIVE_S", 60.0)
    desk = Desk()
    steps = [lambda one=one: desk.ticket.put(one) for one in PIECES]
    thread = desk.later(*steps, lambda: desk.ticket.end("stop"))
    assert read(desk.ticket) == PIECES
    thread.join()
    assert desk.ticket.done and desk.ticket.finish_reason == "stop" and not desk.cancelled


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_ticket_that_waits_says_so_again_and_again(read, monkeypatch):
    monkeypatch.setattr(requests, "KEEP_ALIVE_S", 0.02)
    told = []

    def place_of(ticket):
        told.append(1 if len(told) > 3 else 3)
        return told[-1]

    def end():
        while told.count(1) < 2:
            time.sleep(0.005)
        ticket.end("length")

    ticket = Ticket(7, 12, place_of=place_of, cancelled=lambda ticket: None)
    thread = threading.Thread(target=end)
    thread.start()
    found = read(ticket)
    thread.join()
    assert found[:4] == [Waiting(3)] * 4 and found[-1] == Waiting(1)
    assert ticket.place == 0


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_failure_is_raised_behind_the_pieces(read):
    desk = Desk()
    desk.ticket.put(PIECES[0])
    desk.ticket.end("error", EngineDead("gone"))
    desk.ticket.end("stop")  # the first end counts
    with pytest.raises(EngineDead, match="gone"):
        read(desk.ticket)
    assert desk.ticket.finish_reason == "error"


def test_leaving_the_loop_cancels():
    desk = Desk()
    desk.ticket.put(PIECES[0])
    events = iter(desk.ticket)
    next(events)
    assert not desk.cancelled
    events.close()
    assert desk.cancelled == [desk.ticket] and desk.ticket.cancel_asked


def test_cancelling_the_task_cancels_and_the_loop_is_never_blocked():
    desk = Desk(place=1)

    async def run():
        task = asyncio.create_task(_collect(desk.ticket))
        for _ in range(20):
            await asyncio.sleep(0.005)  # the loop goes on while the task waits
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert desk.cancelled == [desk.ticket]


def test_an_event_loop_that_is_gone_does_no_harm():
    desk = Desk()

    async def begin():
        events = aiter(desk.ticket)
        task = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(begin())
    desk.ticket.put(PIECES[0])
    desk.ticket.end("stop")


def test_the_result_is_the_whole_answer():
    desk = Desk()
    with pytest.raises(TimeoutError):
        desk.ticket.result(timeout=0.01)
    for one in PIECES:
        desk.ticket.put(one)
    desk.ticket.end("stop")
    answer = desk.ticket.result()
    assert (answer.text, answer.finish_reason, answer.ids) == ("Hello", "stop", (5, 6, 9))


def test_a_full_queue_says_when_to_come_back():
    error = QueueFull(12, 3.25)
    assert (error.waiting, error.retry_after) == (12, 3.25)
    assert "12 request(s) are waiting" in str(error) and "3.2 s" in str(error)
