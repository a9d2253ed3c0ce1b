"""How many connections there may be, and which of them make room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from api.http.connections import Connections, ThrottledWarning, client_of, throttle_accept_warnings

PROXY = "10.0.0.1"


class Line:
    """A connection that notes whether it had to make room."""

    def __init__(self, crowd: Connections, address: str) -> None:
        self.is_open = True
        self.works = False
        self.address = address
        self.taken = crowd.admit(self, address)

    def make_room(self) -> None:
        assert not self.works
        self.is_open = False


@pytest.fixture
def lines() -> Iterator[list[str]]:
    written: list[str] = []
    sink = logger.add(written.append, format="{message}")
    yield written
    logger.remove(sink)


ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", PROXY])


@given(st.lists(st.tuples(ADDRESSES, st.booleans(), st.booleans()), max_size=60))
def test_connections_are_limited_and_busy_ones_stay(events: list[tuple[str, bool, bool]]) -> None:
    crowd = Connections(most=8, most_each=3, proxies=frozenset({PROXY}))
    held: list[Line] = []
    for address, works, ends in events:
        line = Line(crowd, address)
        if line.taken:
            held.append(line)
            if works:
                line.works = True
                crowd.works(line)
        else:
            same = [each for each in held if client_of(each.address) == client_of(address)]
            assert all(each.works for each in (same if len(same) == 3 else held))
        if ends and held:
            crowd.closed(held.pop(0))
        held = [each for each in held if each.is_open]
        assert len(crowd) == len(held) <= 8
        for client in {client_of(each.address) for each in held} - {PROXY}:
            assert sum(client_of(each.address) == client for each in held) <= 3
    for each in held:
        crowd.closed(each)
    assert len(crowd) == crowd.waiting == 0


def test_the_one_that_has_waited_longest_makes_room() -> None:
    crowd = Connections(most=2, most_each=10, proxies=frozenset())
    first, second = Line(crowd, "192.0.2.1"), Line(crowd, "192.0.2.2")
    crowd.works(first)
    crowd.waits(first)  # its answer is sent: it has waited since now
    third = Line(crowd, "192.0.2.3")
    assert (first.is_open, second.is_open, third.taken) == (True, False, True)


def test_one_client_has_a_network_of_addresses_where_there_are_so_many() -> None:
    assert client_of("2001:db8:0:1::1") == client_of("2001:db8:0:1:ffff::2")
    assert client_of("2001:db8:0:1::1") != client_of("2001:db8:0:2::1")
    assert client_of("::ffff:192.0.2.1") == client_of("192.0.2.1") != client_of("192.0.2.2")


def test_what_happens_again_and_again_is_logged_once_and_counted(lines: list[str]) -> None:
    seldom = ThrottledWarning("it happened {} times")
    for _ in range(1_000):
        seldom.happened()
    assert lines == ["it happened 1 times\n"]
    seldom._quiet_until = 0.0
    seldom.happened()
    assert lines[1:] == ["it happened 1000 times\n"]


def test_a_lack_of_descriptors_does_not_fill_the_log(lines: list[str]) -> None:
    async def lack() -> list[str]:
        reported: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context["message"]))
        throttle_accept_warnings(loop)
        for _ in range(2_000):
            loop.call_exception_handler({"message": "socket.accept() out of system resource"})
        loop.call_exception_handler({"message": "something else"})
        return reported

    assert asyncio.run(lack()) == ["something else"]
    assert len(lines) == 1
