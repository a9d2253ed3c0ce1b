"""What the gateway promises to people who correct a transcript."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from common.db.deletions import Deletions
from common.db.tables import TranscriptRevision
from common.domain.request import Options
from common.domain.speakers import Diarization, SpeakerCount, Turn
from common.domain.values import Span
from tests.support.api import Api
from tests.support.factories import CLEAN, TENANT, do_step, offensive, stored_segment

A, B = "SPEAKER_00", "SPEAKER_01"
WORDS = [[" hello", 0, 500, 0.9], [" their", 600, 1_000, 0.5], [" folks", 1_200, 2_000, 0.9]]
SAID = [
    stored_segment(0, 2_000, " hello their folks", words=WORDS, speaker=A),
    stored_segment(3_000, 5_000, " good bye", speaker=B),
    stored_segment(6_000, 9_000, " see you", speaker=A),
]
DIARIZATION = Diarization((Turn(Span(0, 2_000), A), Turn(Span(3_000, 5_000), B)))
OPTIONS = Options(moderation=True, diarize=SpeakerCount())


@pytest.fixture
def job_id(api: Api) -> UUID:
    """A completed job of 20 s, with two speakers."""
    job_id = api.submit(options=OPTIONS)
    segments = [{**it, "verdict": CLEAN.to_json()} for it in SAID]
    api.complete(2, segments=segments, diarization=DIARIZATION, manifest={"moderation": []})
    return job_id


def edit(
    api: Api, job_id: object, *edits: object, on: str | None = '"1-0"', status: int = 200
) -> httpx.Response:
    headers = {} if on is None else {"If-Match": on}
    return api.ask(
        "PATCH", f"jobs/{job_id}/transcript", status, json={"edits": edits}, headers=headers
    )


def replace(segment: int, text: str) -> dict[str, Any]:
    return {"op": "replace", "segment": segment, "text": text}


def texts(api: Api, job_id: UUID, **query: Any) -> list[str]:
    return [it["text"] for it in api.get(f"jobs/{job_id}/transcript", **query)["segments"]]


def test_a_transcript_has_its_words_and_a_tag(api: Api, job_id: UUID) -> None:
    answer = api.ask("GET", f"jobs/{job_id}/transcript")
    body = answer.json()
    assert answer.headers["ETag"] == '"1-0"'
    assert (body["revision"], body["origin"], body["refinement"]) == (1, "merge", None)
    assert [it["word"] for it in body["segments"][0]["words"]] == ["hello", "their", "folks"]
    assert [it["id"] for it in body["speakers"]] == [A, B]
    same = {"If-None-Match": '"1-0"'}
    assert api.ask("GET", f"jobs/{job_id}/transcript", 304, headers=same).content == b""


def test_an_edit_is_a_revision_that_says_who_when_why_and_what(api: Api, job_id: UUID) -> None:
    request = {"edits": [replace(0, "hello there folks")], "note": "A  typo\n"}
    answer = api.ask(
        "PATCH", f"jobs/{job_id}/transcript", json=request, headers={"If-Match": '"1-0"'}
    )
    assert answer.headers["ETag"] == '"2-0"'
    made = answer.json()
    assert (made["revision"], made["origin"], made["note"]) == (2, "edit", "A typo")
    (changed,) = made["changes"]
    assert (changed["op"], changed["words"]) == (
        "replace",
        [
            {"op": "equal", "text": "hello"},
            {"op": "delete", "text": " their"},
            {"op": "insert", "text": " there"},
            {"op": "equal", "text": " folks"},
        ],
    )
    words = api.get(f"jobs/{job_id}/transcript")["segments"][0]["words"]
    assert [(it["word"], it["start"], it["estimated"]) for it in words] == [
        ("hello", 0.0, False),
        ("there", 0.6, True),
        ("folks", 1.2, False),
    ]
    listed = api.get(f"jobs/{job_id}/revisions")["revisions"]
    assert [(it["revision"], it["note"]) for it in listed] == [(2, "A typo"), (1, None)]
    assert listed[0] == made


def test_everything_that_is_given_out_follows_and_says_which_revision(
    api: Api, job_id: UUID
) -> None:
    edit(api, job_id, replace(0, "hello there folks"), {"op": "delete", "segment": 2})
    body = api.get(f"result/{job_id}")
    assert (body["revision"], body["text"]) == (2, "hello there folks good bye")
    for ending in ("txt", "srt", "vtt", "tsv", "json", "rttm"):
        file = api.download(job_id, format=ending)
        assert file.headers["X-Revision"] == "2"
        assert "their" not in file.text
        assert ending == "rttm" or "hello there folks" in file.text
    history = api.get("history")["history"]
    assert [it["content"] for it in history if it["job_id"] == str(job_id)] == [body["text"]]


def test_many_edits_are_made_at_once_or_not_at_all(api: Api, job_id: UUID) -> None:
    some = [
        {"op": "split", "segment": 0, "word": 1},
        {"op": "insert", "start": 9.5, "end": 10, "text": "bye", "speaker": B},
        {"op": "replace", "segment": 2, "start": 6.5, "speaker": B},
    ]
    failed = edit(api, job_id, *some, replace(3, "nobody"), status=422).json()
    assert (failed["field"], failed["value"]) == ("edits[3].segment", 3)
    assert api.count(TranscriptRevision) == 1
    edit(api, job_id, *some)
    found = api.get(f"jobs/{job_id}/transcript")["segments"]
    assert [(it["text"], it["start"], it["speaker"]) for it in found] == [
        ("hello", 0.0, A),
        ("their folks", 0.6, A),
        ("good bye", 3.0, B),
        ("see you", 6.5, B),
        ("bye", 9.5, B),
    ]


def test_a_lost_race_overwrites_nothing(api: Api, job_id: UUID) -> None:
    edit(api, job_id, replace(0, "first"))
    late = edit(api, job_id, replace(0, "second"), status=412).json()
    assert (late["code"], late["newest"], late["value"]) == ("stale_revision", 2, 1)
    assert texts(api, job_id)[0] == "first"
    edit(api, job_id, replace(0, "third"), on="*")
    assert texts(api, job_id)[0] == "third"


def test_a_change_says_what_it_was_made_on(api: Api, job_id: UUID) -> None:
    missing = edit(api, job_id, replace(0, "first"), on=None, status=428).json()
    assert missing["code"] == "precondition_missing"
    for wrong in ("1", '"a"', '"1-0", "2-0"', '"1-0-0"', ""):
        field = edit(api, job_id, replace(0, "first"), on=wrong, status=422).json()["field"]
        assert field == "If-Match"
    assert api.count(TranscriptRevision) == 1


def test_of_50_writers_at_once_exactly_one_wins_each_round(api: Api, job_id: UUID) -> None:
    def write(number: int) -> int:
        answer = api.http.patch(
            f"/api/v1/jobs/{job_id}/transcript",
            json={"edits": [replace(0, f"writer {number}")]},
            headers={"If-Match": tag},
        )
        return answer.status_code

    for at in range(1, 4):
        tag = f'"{at}-0"'
        with ThreadPoolExecutor(50) as writers:
            assert sorted(writers.map(write, range(50))) == [200] + [412] * 49
    listed = api.get(f"jobs/{job_id}/revisions")["revisions"]
    assert [it["revision"] for it in listed] == [4, 3, 2, 1]


def test_a_refinement_changes_the_tag_and_loses_no_edit(api: Api, job_id: UUID) -> None:
    edit(api, job_id, replace(0, "hello there folks"))
    assert api.get(f"jobs/{job_id}/transcript")["refinement"] == "pending"
    with api.database.transaction() as session:
        row = session.get_one(TranscriptRevision, (job_id, 2))
        row.refinements += 1
    do_step(api.steps, api.claim())
    answer = api.ask("GET", f"jobs/{job_id}/transcript")
    assert (answer.headers["ETag"], answer.json()["refinement"]) == ('"2-1"', "done")
    edit(api, job_id, replace(1, "bye"), on='"2-0"')
    assert texts(api, job_id)[:2] == ["hello there folks", "bye"]


def test_the_end_of_a_refinement_shows_though_it_had_nothing_to_complete(
    api: Api, job_id: UUID
) -> None:
    edit(api, job_id, {"op": "delete", "segment": 2})
    unsettled = api.ask("GET", f"jobs/{job_id}/transcript").headers["ETag"]
    do_step(api.steps, api.claim())
    headers = {"If-None-Match": unsettled}
    settled = api.ask("GET", f"jobs/{job_id}/transcript", headers=headers)
    assert (settled.headers["ETag"], settled.json()["refinement"]) == ('"2-0"', "done")
    edit(api, job_id, replace(0, "bye"), on=unsettled)


def test_a_note_is_as_long_as_it_says(api: Api, job_id: UUID) -> None:
    made = api.ask("POST", f"jobs/{job_id}/revisions/1/restore", json={"note": "n" * 1_000})
    assert made.json()["note"] == "n" * 1_000
    for wrong in ({"note": "n" * 1_001}, {"nota": "n"}):
        api.ask("POST", f"jobs/{job_id}/revisions/1/restore", 422, json=wrong)


def test_changed_text_has_no_label_until_it_is_moderated_anew(api: Api, job_id: UUID) -> None:
    labels = [CLEAN, offensive(0, 4), CLEAN]
    with api.database.transaction() as session:
        row = session.get_one(TranscriptRevision, (job_id, 1))
        row.segments = [
            {**it, "verdict": label.to_json()} for it, label in zip(SAID, labels, strict=True)
        ]
    edit(api, job_id, replace(0, "you"))
    moderation = api.get(f"result/{job_id}")["moderation"]
    assert [it["id"] for it in moderation["results"]] == [1, 2]
    assert api.download(job_id, 409, format="wav", redact=True).json()["code"] == "conflict"


def test_an_earlier_revision_can_be_read_compared_and_restored(api: Api, job_id: UUID) -> None:
    edit(api, job_id, replace(0, "hello there folks"))
    edit(api, job_id, {"op": "join", "first": 1, "last": 1}, on='"2-0"', status=422)
    edit(api, job_id, {"op": "delete", "segment": 1}, on='"2-0"')
    assert texts(api, job_id, revision=1) == ["hello their folks", "good bye", "see you"]
    compared = api.get(f"jobs/{job_id}/revisions/difference", old=1, new=3)
    assert [it["op"] for it in compared["changes"]] == ["replace", "delete"]
    assert api.get(f"jobs/{job_id}/revisions/difference", old=3, new=3)["changes"] == []

    path = f"jobs/{job_id}/revisions/1/restore"
    api.ask("POST", path, 412, headers={"If-Match": '"2-0"'})
    restored = api.ask("POST", path, json={"note": "all wrong"}).json()

    assert (restored["revision"], restored["origin"], restored["note"]) == (
        4,
        "restore",
        "all wrong",
    )
    assert texts(api, job_id) == texts(api, job_id, revision=1)
    back = api.get(f"jobs/{job_id}/revisions/difference", old=1)
    assert (back["new"], back["changes"]) == (4, [])


def test_renamed_speakers_are_a_revision_too(api: Api, job_id: UUID) -> None:
    api.ask("PATCH", f"jobs/{job_id}/speakers", json={A: "Lan"})
    newest = api.get(f"jobs/{job_id}/revisions")["revisions"][0]
    assert (newest["origin"], newest["changes"]) == (
        "speakers",
        [{"op": "speakers", "speakers": {A: "Lan"}}],
    )
    merged = api.ask("PATCH", f"jobs/{job_id}/speakers", json={A: B}).json()["speakers"]
    assert [it["id"] for it in merged] == [B]
    api.ask("POST", f"jobs/{job_id}/revisions/2/restore")
    names = [(it["id"], it["name"]) for it in api.get(f"jobs/{job_id}/speakers")["speakers"]]
    assert names == [(A, "Lan"), (B, None)]


def test_revisions_come_by_the_page(api: Api, job_id: UUID) -> None:
    for at in range(1, 6):
        edit(api, job_id, replace(0, f"version {at}"), on=f'"{at}-0"')
    seen, cursor = [], None
    while True:
        query = {"limit": 2} | ({} if cursor is None else {"cursor": cursor})
        page = api.get(f"jobs/{job_id}/revisions", 200, **query)
        seen += [it["revision"] for it in page["revisions"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("edits", "field"),
    [
        ([{"op": "replace", "segment": 0, "text": "  "}], "edits[0].text"),
        ([{"op": "replace", "segment": 7, "text": "x"}], "edits[0].segment"),
        ([{"op": "replace", "segment": 0, "end": 25}], "edits[0].end"),
        ([{"op": "replace", "segment": 0, "end": 4}], "edits[0].end"),
        ([{"op": "replace", "segment": 0, "start": 3}], "edits[0].start"),
        ([{"op": "split", "segment": 0, "at": 7}], "edits[0].at"),
        (
            [{"op": "split", "segment": 0, "word": 1}, {"op": "split", "segment": 0, "word": 2}],
            "edits[1].segment",
        ),
        ([{"op": "replace", "segment": 0, "speaker": "SPEAKER_07"}], "edits[0].speaker"),
        ([{"op": "insert", "start": 1, "end": 2.5, "text": "x"}], "edits[0].start"),
        ([{"op": "replace", "segment": 0, "end": 1e308}], "edits[0].end"),
        ([{"op": "replace", "segment": 0, "end": "soon"}], "edits[0].end"),
        ([{"op": "delete", "segment": -1}], "edits[0].segment"),
        ([{"op": "delete", "segment": 10**30}], "edits[0].segment"),
        ([], "edits"),
    ],
)
def test_an_impossible_edit_names_its_field(
    api: Api, job_id: UUID, edits: list[object], field: str
) -> None:
    refused = edit(api, job_id, *edits, status=422).json()
    assert refused["field"] == field, refused
    assert refused["limit" if "limit" in refused else "allowed"]
    assert api.count(TranscriptRevision) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"op": "erase", "segment": 0},
        {"op": "replace", "segment": -1, "text": "x"},
        {"op": "replace", "segment": 0, "text": 5},
        {"op": "replace", "segment": 0, "start": "nan"},
        {"op": "replace", "segment": 0, "start": 1e308},
        {"op": "replace", "segment": 10**30, "text": "x"},
        {"op": "replace", "segment": 0, "txt": "x"},
        {"segment": 0},
        "delete",
    ],
)
def test_a_malformed_edit_changes_nothing(api: Api, job_id: UUID, wrong: object) -> None:
    edit(api, job_id, wrong, status=422)
    assert api.count(TranscriptRevision) == 1


def test_too_much_text_is_refused(api: Api, job_id: UUID) -> None:
    long = edit(api, job_id, replace(0, "a" * 10_001), status=413).json()
    assert (long["field"], long["value"]) == ("edits[0].text", 10_001)
    edit(api, job_id, *[replace(0, "a" * 10_000)] * 1_000, status=413)  # the body
    many = edit(api, job_id, *[replace(0, "a" * 10_000)] * 21, status=413).json()
    assert (many["field"], many["limit"], many["value"]) == (
        "edits",
        "200000 characters in all texts",
        210_000,
    )
    edit(api, job_id, *[replace(0, "a")] * 1_001, status=422)
    assert api.count(TranscriptRevision) == 1


def test_revisions_that_do_not_exist_are_not_found(api: Api, job_id: UUID) -> None:
    assert api.get(f"jobs/{job_id}/transcript", 404, revision=2)["code"] == "not_found"
    api.get(f"jobs/{job_id}/revisions/difference", 404, old=1, new=9)
    api.ask("POST", f"jobs/{job_id}/revisions/9/restore", 404)
    for number in (0, -1, 2**31):
        api.get(f"jobs/{job_id}/transcript", 422, revision=number)
    api.ask("POST", f"jobs/{job_id}/revisions/{2**31}/restore", 422)


@pytest.mark.parametrize(
    ("path", "sent", "nearest"),
    [
        ("jobs/{}/transcript", "revison", "revision"),
        ("jobs/{}/revisions", "page", None),
        ("jobs/{}/revisions/difference", "oldest", "old"),
        ("download/{}", "max_line", "max_line_width"),
        ("result/{}", "revision", None),
        ("enhanced-ai", "tasks", "task"),
        ("glossaries", "limits", "limit"),
        ("search", "lang", "language"),
    ],
)
def test_an_unknown_parameter_is_named_with_the_nearest_one(
    api: Api, job_id: UUID, path: str, sent: str, nearest: str | None
) -> None:
    problem = api.get(
        path.format(job_id), 422, **{"q": "a"} if path == "search" else {}, **{sent: 1}
    )
    assert (problem["field"], problem.get("nearest")) == (sent, nearest)


def test_transcripts_of_others_of_unfinished_and_of_deleted_jobs_cannot_be_edited(
    api: Api, job_id: UUID
) -> None:
    others = api.submit(tenant="another")
    unfinished = api.submit()
    for unknown in (others, uuid4()):
        edit(api, unknown, replace(0, "x"), status=404)
        for path in ("transcript", "revisions", "revisions/difference"):
            api.get(f"jobs/{unknown}/{path}", 404)
    assert edit(api, unfinished, replace(0, "x"), status=409).json()["code"] == "not_ready"
    assert api.get(f"jobs/{unfinished}/transcript", 409)["code"] == "not_ready"
    edit(api, job_id, replace(0, "gone"))
    Deletions(api.database, TENANT).delete(job_id)
    edit(api, job_id, replace(0, "x"), on='"2-0"', status=404)
    assert api.count(TranscriptRevision) == 0


def test_what_people_replace_in_three_transcripts_is_suggested_to_the_glossary(api: Api) -> None:
    jobs = []
    for _ in range(3):
        jobs.append(api.submit())
        api.complete(1, segments=[stored_segment(0, 2_000, " we met Nguyen Van An today")])
    for at, job_id in enumerate(jobs):
        assert api.get("glossaries/suggestions")["suggestions"] == [], at
        edit(api, job_id, replace(0, "we met Nguyễn Vân An today"))
    (found,) = api.get("glossaries/suggestions")["suggestions"]
    assert (found["word"], found["instead_of"]) == ("Nguyễn Vân", "nguyen van")
