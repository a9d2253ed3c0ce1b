"""Cursors and the digests of requests."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.jobs.idempotency import request_sha256
from api.jobs.resolving import form_options
from common.db.paging import Cursor, page_of
from common.errors import OutOfRange

UPLOAD = "POST /api/v1/upload"
CURSORS = st.builds(Cursor, st.datetimes(timezones=st.just(UTC)), st.uuids())


@given(CURSORS)
def test_a_cursor_leads_back_to_its_place(cursor: Cursor) -> None:
    assert Cursor.parse(str(cursor)) == cursor


@given(st.text(max_size=80) | CURSORS.map(lambda cursor: str(cursor)[:-3]))
def test_what_is_no_cursor_is_rejected_by_name(text: str) -> None:
    with pytest.raises(OutOfRange, match="cursor"):
        Cursor.parse(text)


@given(st.integers(0, 20), st.integers(1, 20))
def test_a_page_says_whether_there_is_another(count: int, limit: int) -> None:
    def place(number: int) -> Cursor:
        return Cursor(datetime.now(UTC), UUID(int=number))

    page = page_of(list(range(count))[: limit + 1], limit, place)
    assert len(page.items) == min(count, limit)
    assert (page.next is not None) == (count > limit)
    assert page.next is None or page.next.id == UUID(int=limit - 1)


def test_requests_are_the_same_however_they_are_written() -> None:
    first = form_options({"language": "en", "metadata": '{"a": 1, "b": 2}', "model": ""})
    again = form_options({"metadata": '{"b":2,"a":1}', "language": " EN", "priority": "normal"})
    assert request_sha256(UPLOAD, first, "00") == request_sha256(UPLOAD, again, "00")


def test_requests_differ_by_options_recording_and_endpoint() -> None:
    options = form_options({"language": "en"})
    digests = {
        request_sha256(UPLOAD, options, "00"),
        request_sha256(UPLOAD, options, "01"),
        request_sha256(UPLOAD, options),
        request_sha256("POST /api/v1/jobs", options),
        request_sha256(UPLOAD, form_options({"language": "vi"}), "00"),
        request_sha256(UPLOAD, form_options({"language": "en", "beam_size": "5"}), "00"),
    }
    assert len(digests) == 6
