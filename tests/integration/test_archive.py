"""The texts of several jobs come as one archive, or none does and the answer says why."""

from __future__ import annotations

import io
import stat
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID, uuid4
from zipfile import ZipFile

import httpx
import pytest
from sqlalchemy import update

from common.db.jobs import Jobs
from common.db.tables import Recording
from tests.support.api import Api
from tests.support.factories import MODERATED, TENANT, stored_segment, submit_job
from tests.support.gateway import GatewayProcess

FORMATS = ("json", "txt", "srt", "vtt", "tsv", "docx", "html")


def done(api: Api, name: str = "talk.mp3", text: str = " Xin chào.", **fields: Any) -> UUID:
    """A completed job whose recording has this name."""
    job_id = api.submit(**fields)
    recording_id = Jobs(api.database, TENANT).recording(job_id).id
    with api.database.transaction() as session:
        session.execute(update(Recording).where(Recording.id == recording_id).values(filename=name))
    api.complete(segments=[stored_segment(0, 10_000, text)])
    return job_id


def ask(api: Api, *job_ids: object, status: int = 200, **options: Any) -> httpx.Response:
    body = {"job_ids": [str(each) for each in job_ids], **options}
    return api.ask("POST", "archive", status, json=body)


def archive(answer: httpx.Response) -> ZipFile:
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"].startswith("attachment; ")
    file = ZipFile(io.BytesIO(answer.content))
    assert file.testzip() is None
    return file


@pytest.mark.parametrize("ending", FORMATS)
def test_it_has_the_file_of_each_job(api: Api, ending: str) -> None:
    first, second = done(api, "a.mp3", " one"), done(api, "b.wav", " two")
    file = archive(ask(api, second, first, format=ending))
    assert file.namelist() == [f"b.{ending}", f"a.{ending}"]
    for name, job_id in ((f"b.{ending}", second), (f"a.{ending}", first)):
        alone = api.download(job_id, format=ending).content
        if ending == "docx":  # whose own archive has the time at which it was made
            assert file.read(name)[:2] == alone[:2] == b"PK"
        else:
            assert file.read(name) == alone


def test_options_are_those_of_a_download(api: Api) -> None:
    job_id = done(api, "a.mp3", " một hai ba bốn, năm sáu bảy tám chín")
    options: dict[str, Any] = {"format": "srt", "max_line_width": 20, "max_line_count": 1}
    file = archive(ask(api, job_id, **options))
    assert file.read("a.srt") == api.download(job_id, **options).content
    assert file.read("a.srt").count(b"-->") > 1


def test_a_repeated_job_counts_once(api: Api) -> None:
    job_id = done(api)
    assert archive(ask(api, job_id, job_id, str(job_id).upper())).namelist() == ["talk.txt"]


def test_names_are_distinct_and_safe_where_it_is_unpacked(api: Api) -> None:
    names = ["talk.mp3", "TALK.wav", "talk.ogg", "../../etc/passwd", "C:\\a\u202egpj.exe", "..", ""]
    jobs = [done(api, name) for name in names]
    file = archive(ask(api, *jobs))
    found = file.namelist()
    assert found[:3] == ["talk.txt", "TALK (2).txt", "talk (3).txt"]
    assert found[3:5] == ["passwd.txt", "agpj.txt"]
    assert len({name.casefold() for name in found}) == len(jobs)
    for info in file.infolist():
        assert PurePosixPath(info.filename).parts == (info.filename,)
        assert stat.filemode(info.external_attr >> 16).endswith("rw-r--r--")


def test_a_name_in_vietnamese_stays(api: Api) -> None:
    file = archive(ask(api, done(api, "Phỏng vấn.m4a"), format="srt"))
    assert file.namelist() == ["Phỏng vấn.srt"]


def test_a_job_that_does_not_exist_is_named(api: Api) -> None:
    known, unknown = done(api), uuid4()
    theirs = submit_job(api.database, tenant="other")
    for missing in (unknown, theirs):
        answer = ask(api, known, missing, status=404)
        assert answer.headers["content-type"] == "application/problem+json"
        assert str(missing) in answer.json()["detail"]
    deleted = done(api)
    api.ask("DELETE", f"jobs/{deleted}", 204)
    assert str(deleted) in ask(api, deleted, status=404).json()["detail"]


def test_jobs_without_a_text_are_named(api: Api) -> None:
    ended = done(api)
    failed = api.submit()
    api.fail()
    waiting = [api.submit() for _ in range(25)]
    problem = ask(api, ended, failed, *waiting[:2], status=409).json()
    assert problem["code"] == "no_text"
    for each in (failed, *waiting[:2]):
        assert str(each) in problem["detail"]
    assert str(ended) not in problem["detail"]
    assert "and 5 more" in ask(api, *waiting, status=409).json()["detail"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"format": "original"}, "format"),
        ({"format": "wav"}, "format"),
        ({"format": "rttm"}, "format"),
        ({"format": "srt", "flag": True}, "flag"),
        ({"filter_profanity": True}, "filter_profanity"),
        ({"format": "txt", "max_cps": 20}, "max_cps"),
        ({"redact": True}, "redact"),
        ({"expires_in_seconds": 60}, "expires_in_seconds"),
        ({"job_ids": []}, "job_ids"),
        ({"job_ids": [str(uuid4())] * 1_001}, "job_ids"),
        ({"job_ids": "all"}, "job_ids"),
    ],
)
def test_what_an_archive_cannot_have_is_rejected_by_name(
    api: Api, options: dict[str, Any], field: str
) -> None:
    job_id = done(api)
    body = api.ask("POST", "archive", 422, json={"job_ids": [str(job_id)]} | options).json()
    assert body["field"] == field
    if len(options.get("job_ids", ())) > 1_000:
        assert "at most 1000" in body["detail"]


def test_an_option_that_one_job_cannot_have_names_the_job(api: Api) -> None:
    moderated, plain = done(api, options=MODERATED), done(api)
    ask(api, moderated, format="srt", flag=True)
    problem = ask(api, moderated, plain, status=422, format="srt", flag=True).json()
    assert (problem["field"], str(plain) in problem["detail"]) == ("flag", True)
    assert str(plain) in ask(api, plain, status=422, format="rttm").json()["detail"]


def test_many_long_texts_are_sent_while_they_are_written(api: Api, gateway: GatewayProcess) -> None:
    jobs = [done(api, f"{number}.mp3", " a lot of text" * 20_000) for number in range(20)]
    body = {"job_ids": [str(each) for each in jobs], "format": "json"}
    pieces = 0
    content = b""
    with gateway.http.stream("POST", "/api/v1/archive", json=body) as answer:
        assert "content-length" not in answer.headers
        for piece in answer.iter_raw():
            pieces += 1
            content += piece
    assert pieces > 1
    assert len(ZipFile(io.BytesIO(content)).namelist()) == len(jobs)
