"""What the gateway promises about glossaries, jobs that use them, and suggestions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import select

from common.db.deletions import Deletions
from common.db.glossaries import MOST_REPLACEMENTS, Glossaries, count_replacements
from common.db.tables import Deletion, Job, Replacement
from common.domain.glossary import Entry, Glossary
from common.domain.request import Options
from common.errors import NotFound, UnknownOption
from tests.support.api import Api
from tests.support.audio_files import make_wav
from tests.support.factories import TENANT, submit_job
from tests.support.speech import pcm16, silence

AN = {"word": "Nguyễn Văn An", "instead_of": ["nguyen van an", "Nguyễn Vân An"]}


@pytest.fixture(autouse=True)
def none_yet(api: Api) -> None:
    """No glossaries of earlier tests."""
    with api.database.transaction() as session:
        session.connection().exec_driver_sql("TRUNCATE glossaries, replacements")


def create(api: Api, status: int = 201, /, **fields: Any) -> Any:
    content = {"name": "board", "entries": [AN]} | fields
    return api.ask("POST", "glossaries", status, json=content).json()


def options_of(api: Api, job_id: object) -> Options:
    with api.database.transaction() as session:
        stored = session.scalar(select(Job.options).where(Job.id == UUID(str(job_id))))
    assert stored is not None
    return Options.from_json(stored)


def job(api: Api, status: int = 201, /, **options: Any) -> Any:
    return api.ask(
        "POST", "jobs", status, json={"language": "vi", "model": "base", **options}
    ).json()


def test_a_glossary_is_created_read_replaced_and_deleted(api: Api) -> None:
    made = create(api, rewrite=True, language="VI", name="  the   board ")
    assert made == {
        "id": made["id"],
        "name": "the board",
        "entries": [AN],
        "rewrite": True,
        "language": "vi",
        "default": False,
        "created_at": made["created_at"],
        "updated_at": made["updated_at"],
    }
    path = f"glossaries/{made['id']}"
    assert api.get(path) == made
    new = {"name": "staff", "entries": [{"word": "Lan"}], "default": True}
    changed = api.ask("PUT", path, json=new).json()
    assert changed["entries"] == [{"word": "Lan", "instead_of": []}]
    assert (changed["name"], changed["default"], changed["language"]) == ("staff", True, None)
    assert changed["updated_at"] > made["updated_at"]
    assert api.get(path) == changed
    api.ask("DELETE", path, 204)
    for method in ("GET", "DELETE"):
        assert "There is no glossary" in api.ask(method, path, 404).json()["detail"]
    api.ask("PUT", path, 404, json=new)


def test_the_list_has_pages_and_no_entries(api: Api) -> None:
    names = [create(api, name=f"list {number}")["name"] for number in range(3)]
    first = api.get("glossaries", limit=2)
    second = api.get("glossaries", limit=2, cursor=first["next_cursor"])
    listed = first["glossaries"] + second["glossaries"]
    assert [it["name"] for it in listed] == names[::-1]
    assert second["next_cursor"] is None
    assert [it["words"] for it in listed] == [1, 1, 1]
    assert "entries" not in listed[0]


def test_one_glossary_has_a_name_and_one_is_the_default(api: Api) -> None:
    first = create(api, default=True)
    assert "'board' already" in create(api, 409)["detail"]
    second = create(api, name="staff", default=True)
    assert not api.get(f"glossaries/{first['id']}")["default"]
    assert second["default"]
    taken = {"name": "board", "entries": []}
    api.ask("PUT", f"glossaries/{second['id']}", 409, json=taken)
    assert api.ask("PUT", f"glossaries/{first['id']}", json=taken).json()["entries"] == []


def test_a_glossary_is_not_overwritten_unseen(api: Api) -> None:
    first, second = create(api), create(api, name="staff")
    path = f"glossaries/{first['id']}"
    seen = api.ask("GET", path).headers["ETag"]
    content = {"name": "board", "entries": [{"word": "Lan"}]}

    def put(status: int = 200, tag: str | None = None, **change: Any) -> httpx.Response:
        headers = {} if tag is None else {"If-Match": tag}
        return api.ask("PUT", path, status, json=content | change, headers=headers)

    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: (
                    api.http.put(
                        f"/api/v1/{path}", json=content, headers={"If-Match": seen}
                    ).status_code
                ),
                range(8),
            )
        )
    assert sorted(answers) == [200, *[412] * 7]
    now = api.ask("GET", path).headers["ETag"]
    assert put(412, seen).json()["code"] == "glossary_changed"
    made = put(200, f"W/{now}", default=True).headers["ETag"]
    # Another default one changes it, too.
    api.ask("PUT", f"glossaries/{second['id']}", json={**content, "name": "s", "default": True})
    put(412, made)
    assert put(200, "*").headers["ETag"] == api.ask("GET", path).headers["ETag"]
    put()
    put(412, "nonsense")


def test_a_tenant_has_a_hundred_glossaries_at_most(api: Api) -> None:
    stored = Glossaries(api.database, TENANT)
    for number in range(100):
        stored.create(Glossary(f"list {number}", ()), default=False)
    assert create(api, 409)["detail"] == "The tenant has 100 glossaries, the maximum"


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"name": " "}, "name", "at least 1"),
        ({"name": "a,b"}, "name", "without commas"),
        ({"name": "None"}, "name", "another name than none"),
        ({"name": "x" * 101}, "name", "100"),
        ({"language": "xx"}, "language", "a Whisper code"),
        ({"entries": [{"word": "x"}] * 1_001}, "entries", "1000"),
        ({"entries": [AN, AN, AN, {"word": "x" * 101}]}, "entries[3].word", "100"),
        ({"entries": [{"word": "!?"}]}, "entries[0].word", "a letter or a digit"),
        ({"entries": [{"word": "Huế, Đà Lạt"}]}, "entries[0].word", "without commas"),
        ({"name": "a\u202eb"}, "name", "change its direction"),
        ({"entries": [{"word": "a\u202eb"}]}, "entries[0].word", "change its direction"),
        ({"entries": [{"word": "\u0301"}]}, "entries[0].word", "a letter or a digit"),
        ({"entries": [{"word": "a\u0000b"}]}, "entries[0].word", "control characters"),
        ({"entries": [{"instead_of": ["x"]}]}, "entries[0].word", "is missing"),
        ({"entries": [{"word": "x", "instead_of": ["y"] * 21}]}, "entries[0].instead_of", "20"),
        (
            {"entries": [{"word": "x", "instead_of": [""]}]},
            "entries[0].instead_of[0]",
            "at least 1",
        ),
        ({"entries": [{"word": "x", "instead": []}]}, "entries[0].instead", "not supported"),
        ({"words": []}, "words", "not supported"),
    ],
)
def test_what_is_wrong_with_a_glossary_is_named(
    api: Api, fields: dict[str, Any], field: str, message: str
) -> None:
    answer = create(api, 422, **fields)
    assert answer["field"] == field
    assert message in answer["detail"]
    assert api.get("glossaries")["glossaries"] == []


def test_halves_of_characters_are_rejected(api: Api) -> None:
    json = {"Content-Type": "application/json"}
    body = b'{"name": "x", "entries": [{"word": "\\ud800x"}]}'
    answer = api.ask("POST", "glossaries", 422, content=body, headers=json)
    assert answer.json()["field"] == "entries[0].word"
    body = b'{"glossaries": "\\ud800x"}'
    assert api.ask("POST", "jobs", 422, content=body, headers=json).json()["field"] == "glossaries"


# --- jobs ---------------------------------------------------------------------------------------


def test_a_job_keeps_the_words_that_it_was_created_with(api: Api) -> None:
    made = create(api, rewrite=True)
    create(api, name="staff", entries=[{"word": "Lan"}])
    job_id = job(api, glossaries="board, staff", hotwords="Huế")["job_id"]
    api.ask("DELETE", f"glossaries/{made['id']}", 204)
    options = options_of(api, job_id)
    an = Entry("Nguyễn Văn An", ("nguyen van an", "Nguyễn Vân An"))
    assert options.glossaries == (
        Glossary("board", (an,), rewrite=True),
        Glossary("staff", (Entry("Lan"),)),
    )
    assert options.decoding.hotwords == "Huế, Nguyễn Văn An, Lan"
    assert options.to_rewrite == [an]
    assert not options.glossary_truncated


def test_every_front_takes_names(api: Api) -> None:
    create(api)
    speech = {"file": ("talk.wav", make_wav(pcm16(silence(0.2))))}
    form = {"language": "vi", "model": "base", "glossaries": "board"}
    sent = api.ask("POST", "upload", data=form, files=speech).json()
    assert options_of(api, sent["job_id"]).decoding.hotwords == "Nguyễn Văn An"
    refused = api.ask("POST", "upload", 422, data=form | {"glossaries": "x"}, files=speech)
    assert "glossaries must be one of none, board; got 'x'" in refused.json()["detail"]
    asr = api.http.post("/asr", params={"glossaries": "y"}, files={"audio_file": speech["file"]})
    assert asr.status_code == 422
    assert "board" in asr.text
    by_url = {"url": "https://example.com/a.mp3", "glossaries": "z"}
    assert api.ask("POST", "transcribe", 422, json=by_url).json()["value"] == "z"


def test_a_default_glossary_is_for_jobs_that_name_none(api: Api) -> None:
    create(api, default=True, language="vi")
    create(api, name="staff", entries=[{"word": "Lan"}])
    expected = {None: "Nguyễn Văn An", "staff": "Lan", "none": None, "": None}
    for named, words in expected.items():
        given = {} if named is None else {"glossaries": named}
        job_id = job(api, **given)["job_id"]
        assert options_of(api, job_id).decoding.hotwords == words
    english = job(api, language="en")["job_id"]
    assert options_of(api, english).decoding.hotwords is None
    detected = job(api, language="auto")["job_id"]
    assert options_of(api, detected).decoding.hotwords == "Nguyễn Văn An"


def test_json_may_have_a_list_of_names(api: Api) -> None:
    create(api)
    create(api, name="staff", entries=[{"word": "Lan"}])
    made = job(api, language=None, languages=["vi", "en"], glossaries=["staff", "board"])
    options = options_of(api, made["job_id"])
    assert options.languages == ("vi", "en")
    assert [it.name for it in options.glossaries] == ["staff", "board"]
    problem = job(api, 422, glossaries=["board", 5])
    assert problem["field"] == "glossaries"


def test_glossaries_that_a_job_cannot_use_are_named(api: Api) -> None:
    create(api, language="vi")
    unknown = job(api, 422, glossaries="board,stuff")
    assert unknown["detail"] == "glossaries must be one of none, board; got 'stuff'"
    other = job(api, 422, language="en", glossaries="board")
    assert other["detail"] == "glossaries=board needs language=vi or auto"
    many = job(api, 422, glossaries=",".join(f"g{number}" for number in range(11)))
    assert "glossaries must be at most 10 names" in many["detail"]
    for name in ("large", "larger"):
        create(api, name=name, entries=[{"word": f"w{number}"} for number in range(600)])
    large = job(api, 422, glossaries="large,larger")
    assert "at most 1000 words in all; got 1200" in large["detail"]


def test_words_without_room_are_left_out(api: Api) -> None:
    create(api, entries=[{"word": f"word {number}"} for number in range(600)])
    options = options_of(api, job(api, glossaries="board")["job_id"])
    assert options.glossary_truncated
    assert options.decoding.hotwords is not None
    assert options.decoding.hotwords.startswith("word 0, word 1, ")
    assert len(options.decoding.hotwords) <= 446
    assert len(options.glossaries[0].entries) == 600


def test_names_are_those_of_the_tenant(api: Api) -> None:
    others = Glossaries(api.database, "another")
    made = others.create(Glossary("theirs", (Entry("Lan"),)), default=True)
    problem = job(api, 422, glossaries="theirs")
    assert problem["detail"] == "glossaries must be one of none; got 'theirs'"
    assert options_of(api, job(api)["job_id"]).glossaries == ()
    api.get(f"glossaries/{made.id}", 404)
    with pytest.raises(NotFound):
        Glossaries(api.database, TENANT).delete(made.id)
    with pytest.raises(UnknownOption):
        Glossaries(api.database, TENANT).named(["theirs"])


# --- suggestions --------------------------------------------------------------------------------


def correct(api: Api, *pairs: tuple[str, str], tenant: str = TENANT) -> UUID:
    """A person makes these replacements in the transcript of a new job."""
    job_id = submit_job(api.database, tenant=tenant)
    with api.database.transaction() as session:
        count_replacements(session, tenant, job_id, pairs)
        count_replacements(session, tenant, job_id, pairs)
    return job_id


def suggested(api: Api) -> list[tuple[str, str, int]]:
    found = api.get("glossaries/suggestions")["suggestions"]
    return [(it["instead_of"], it["word"], it["jobs"]) for it in found]


def test_what_people_replace_in_three_jobs_is_suggested(api: Api) -> None:
    pair, rarer = ("nguyen van an", "Nguyễn Văn An"), ("lam", "Lan")
    for _ in range(2):
        correct(api, pair)
        correct(api, pair, tenant="another")
    assert suggested(api) == []
    for _ in range(3):
        correct(api, pair, rarer)
    assert suggested(api) == [(*pair, 5), (*rarer, 3)]


def test_what_a_glossary_has_is_not_suggested(api: Api) -> None:
    for _ in range(3):
        correct(api, ("nguyễn vân an", "Nguyễn Văn An"), ("nguyễn văn ăn", "Nguyễn Văn An"))
    create(api)
    assert suggested(api) == [("nguyễn văn ăn", "Nguyễn Văn An", 3)]


def test_replacements_are_deleted_with_their_job_and_counted(api: Api) -> None:
    pairs = [("lam", "Lan"), ("hue", "Huế")]
    jobs = [correct(api, *pairs) for _ in range(3)]
    without = submit_job(api.database)
    for job_id in (jobs[0], without):
        Deletions(api.database, TENANT).delete(job_id)
    assert suggested(api) == []
    assert api.count(Replacement) == 4
    with api.database.transaction() as session:
        rows = {it.id: it.rows for it in session.scalars(select(Deletion))}
    assert rows[jobs[0]] == rows[without] + 2


def test_a_job_counts_for_so_many_replacements(api: Api) -> None:
    correct(api, *((f"before {number}", "after") for number in range(MOST_REPLACEMENTS + 50)))
    assert api.count(Replacement) == MOST_REPLACEMENTS


def test_an_unknown_glossary_is_not_found(api: Api) -> None:
    api.get(f"glossaries/{uuid4()}", 404)
    api.get("glossaries/no-id", 422)
