"""Errors of requests name what is wrong."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import AwareDatetime, BaseModel, Field

from api.http.fields import OneLine
from api.http.problems import install, validated
from api.jobs.schemas import UploadOptions
from api.streams.options import StreamOptions
from api.transcripts.edits import Edits
from api.transcripts.speakers import Changes
from api.voices.schemas import NewVoice, VoiceChange
from common.errors import OutOfRange, Unsupported


@pytest.mark.parametrize("name", ["nonsense", "query", "path", "header", "body"])
def test_an_unknown_option_is_named_whatever_its_name(name: str) -> None:
    with pytest.raises(Unsupported) as error:
        validated(StreamOptions, {name: "x"})
    assert error.value.details["field"] == name


VOICE = {"name": "Lan", "job_id": "3fa85f64-5717-4562-b3fc-2c963f66afa6", "consent": {"by": "Lan"}}


async def reason(kind: Any, sent: Any) -> dict[str, Any]:
    """The problem with which a route answers whose body is a ``kind``."""
    app = FastAPI()
    install(app, lambda _, problem: problem)

    def take(body: Any) -> None: ...

    take.__annotations__["body"] = kind
    app.post("/")(take)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.post("/", json=sent)
    assert answer.status_code == 422
    problem: dict[str, Any] = answer.json()
    assert problem["detail"].startswith(problem["field"])
    return problem


class Lists(BaseModel):
    items: list[VoiceChange | int] = Field(max_length=2)


class Texts(BaseModel):
    items: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)


class Either(BaseModel):
    text: str | None = Field(max_length=2)


class Moment(BaseModel):
    at: AwareDatetime


EDIT = {"op": "delete", "segment": 0}
MOVE = "edits[1].op must be one of replace, split, join, delete, insert; got 'move'"
TIME = "a time with its zone, such as 2026-01-31T00:00:00Z"


@pytest.mark.parametrize(
    ("kind", "sent", "field", "detail"),
    [
        (VoiceChange, {"name": ""}, "name", "name must be not empty; got ''"),
        (VoiceChange, {"name": "a\0b"}, "name", "name must be text without control characters"),
        (VoiceChange, {"name": 5}, "name", "name must be text; got 5"),
        (VoiceChange, {"name": {"name": 5}}, "name", "name must be text; got"),
        (VoiceChange, [], "body", "body must be an object; got '[]'"),
        (VoiceChange, {"nam": "Lan"}, "nam", "nam is not supported; did you mean name?"),
        (VoiceChange, {"age": 5}, "age", "age is not supported"),
        (Changes, {"SPEAKER_01": 5}, "SPEAKER_01", "SPEAKER_01 must be text; got 5"),
        (
            Changes,
            {"SPEAKER_01": " "},
            "SPEAKER_01",
            "SPEAKER_01 must be not empty (null removes the name); got ' '",
        ),
        (Changes, {"body": ""}, "body", "body must be not empty"),
        (Changes, [], "body", "body must be an object; got '[]'"),
        (Changes, {str(each): "x" for each in range(101)}, "body", "at most 100 items; got"),
        (NewVoice, VOICE | {"consent": "yes"}, "consent", "consent must be an object; got 'yes'"),
        (NewVoice, VOICE | {"consent": {}}, "consent.by", "consent.by is missing"),
        (NewVoice, VOICE | {"consent": {"by": ""}}, "consent.by", "consent.by must be not empty"),
        (NewVoice, {"name": "Lan"}, "job_id", "job_id is missing"),
        (Lists, {"items": [1, {"name": ""}]}, "items[1].name", "items[1].name must be not empty"),
        (Lists, {"items": ["a"]}, "items[0]", "items[0] must be an object; got 'a'"),
        (Lists, {"items": "ab"}, "items", "items must be a list; got 'ab'"),
        (Texts, {"items": []}, "items", "items must be at least 1 item; got '[]'"),
        (Texts, {"items": ["a", ""]}, "items[1]", "items[1] must be at least 1 character long;"),
        (Edits, {"edits": [EDIT, {"op": "move"}]}, "edits[1].op", MOVE),
        (Edits, {"edits": [EDIT, {"segment": 1}]}, "edits[1].op", "edits[1].op is missing"),
        (Edits, {"edits": [EDIT, "x"]}, "edits[1]", "edits[1] must be an object; got 'x'"),
        (Either, {"text": "abc"}, "text", "text must be at most 2 characters long; got 'abc'"),
        (Moment, {"at": "yesterday"}, "at", f"at must be {TIME}; got 'yesterday'"),
        (Moment, {"at": "2026-13-01T00:00:00Z"}, "at", f"at must be {TIME}; got '2026-13-01T"),
        (Moment, {"at": "2026-11-30"}, "at", f"at must be {TIME}; got '2026-11-30'"),
        (Lists, {"items": [1, 2, 3]}, "items", "items must be at most 2 items; got"),
    ],
)
def test_a_wrong_field_is_named_as_it_was_sent(
    kind: Any, sent: Any, field: str, detail: str
) -> None:
    problem = asyncio.run(reason(kind, sent))
    assert problem["field"] == field
    assert detail in problem["detail"]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"name": ' + b"9" * 5_000 + b"}", b"{"])
def test_a_body_that_cannot_be_read_is_malformed(body: bytes) -> None:
    app = FastAPI()
    install(app, lambda _, problem: problem)

    def take(body: Any) -> None: ...

    take.__annotations__["body"] = VoiceChange
    app.post("/")(take)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            headers = {"Content-Type": "application/json"}
            return await client.post("/", content=body, headers=headers)

    answer = asyncio.run(send())
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


@pytest.mark.parametrize(
    ("sent", "nearest"), [("speakers", "num_speakers"), ("denoise", None), ("lang", "language")]
)
def test_an_unknown_option_comes_with_the_nearest_one(sent: str, nearest: str | None) -> None:
    with pytest.raises(Unsupported) as error:
        validated(UploadOptions, {sent: "2"})
    assert error.value.details.get("nearest") == nearest


class Named(BaseModel):
    name: OneLine


@pytest.mark.parametrize("letter", "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
def test_a_name_cannot_change_the_direction_of_what_follows(letter: str) -> None:
    with pytest.raises(OutOfRange, match="name must be text without characters that change"):
        validated(Named, {"name": f"Lan{letter}"})


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(OutOfRange, match="name must be text without lone surrogates"):
        validated(Named, {"name": "\ud800"})


@pytest.mark.parametrize("name", ["Trần Thị Lan", "لان", "Zoë 🙂"])
def test_a_name_may_be_in_any_alphabet(name: str) -> None:
    assert validated(Named, {"name": name}).name == name
