"""What every storage promises."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from common.audio.decode import MonoDecoder
from common.errors import NotFound, SetupProblem, Unavailable
from common.settings import StorageSettings
from common.storage.opening import open_storage
from common.storage.ranges import BLOCK_BYTES
from common.storage.storage import Erased, Storage
from tests.support.s3 import BUCKET, CutLine, OneByOne, S3Server
from tests.support.service import write_wav
from tests.support.speech import noise

LARGE = 2 * (16 << 20) + 5
"""Three parts of a multipart upload."""


@pytest.fixture
def line(s3_server: S3Server) -> Iterator[CutLine]:
    with CutLine(s3_server.port) as whole:
        yield whole


@pytest.fixture
def open_s3(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Storage]:
    """Opens the storage at a URL that leads to the server."""

    def open_at(url: str) -> Storage:
        for name, value in s3_server.settings(url).items():
            monkeypatch.setenv(name, value)
        return open_storage(StorageSettings(data_dir=tmp_path, s3_link_seconds=60))

    return open_at


@pytest.fixture
def s3(open_s3: Callable[[str], Storage], line: CutLine) -> Storage:
    return open_s3(line.url)


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        s3: Storage = request.getfixturevalue("s3")
        return s3
    return open_storage(StorageSettings(data_dir=tmp_path))


def store(storage: Storage, content: bytes, *, committed: bool = True) -> UUID:
    recording_id = uuid4()
    storage.incoming(recording_id).write_bytes(content)
    storage.secure(recording_id)
    if committed:
        storage.keep(recording_id)
    return recording_id


def read(storage: Storage, recording_id: UUID) -> bytes:
    with storage.open_recording(recording_id) as file:
        return file.read()


def unsettled(storage: Storage, older_than_s: float) -> set[UUID]:
    return {each for page in storage.unsettled(older_than_s) for each in page}


def test_it_says_that_it_can_be_used(storage: Storage) -> None:
    storage.check()


def test_a_recording_is_read_as_it_was_sent(storage: Storage) -> None:
    content = os.urandom(100_000)
    recording_id = store(storage, content)
    for _ in range(2):
        assert read(storage, recording_id) == content
        assert not storage.incoming(recording_id).exists()
        storage.keep(recording_id)
    storage.discard(uuid4())


def test_a_recording_whose_gateway_died_after_the_commit_is_found(storage: Storage) -> None:
    recording_id = store(storage, b"audio", committed=False)
    assert read(storage, recording_id) == b"audio"


def test_a_recording_can_be_read_from_any_place(storage: Storage) -> None:
    content = os.urandom(2 * BLOCK_BYTES + 1000)
    with storage.open_recording(store(storage, content)) as file:
        assert file.seek(0, os.SEEK_END) == len(content)
        assert file.read(10) == b""
        for place in (len(content) - 7, 0, BLOCK_BYTES - 5, 2 * BLOCK_BYTES - 1, 17):
            assert file.seek(place) == place
            assert file.read(11) == content[place : place + 11]
            assert file.tell() == min(place + 11, len(content))
        assert file.seek(-11, os.SEEK_CUR) == 17
        assert file.seek(len(content) + 5) == len(content) + 5
        assert file.read() == b""


def test_a_recording_that_was_not_committed_leaves_nothing(storage: Storage) -> None:
    recording_id = store(storage, b"audio", committed=False)
    storage.discard(recording_id)
    assert not storage.incoming(recording_id).exists()
    with pytest.raises(NotFound):
        storage.open_recording(recording_id)


def test_uncommitted_recordings_are_found_once_they_are_old(storage: Storage) -> None:
    recording_id = store(storage, b"audio", committed=False)
    assert unsettled(storage, 3600) == set()
    assert recording_id in unsettled(storage, -1)


def test_missing_files_are_not_found(storage: Storage) -> None:
    with pytest.raises(NotFound):
        storage.open_recording(uuid4())
    with pytest.raises(NotFound):
        storage.offer(uuid4(), media_type="audio/wav", disposition="attachment")
    with pytest.raises(NotFound):
        storage.read_chunk(uuid4(), 0)


def test_chunks_are_read_as_they_were_written_until_they_are_dropped(storage: Storage) -> None:
    job_id, other = uuid4(), uuid4()
    for each in (job_id, other):
        storage.begin("chunks", each)
        storage.begin("chunks", each)
    storage.write_chunk(job_id, 0, b"zero")
    storage.write_chunk(job_id, 10, b"ten")
    storage.write_chunk(job_id, 10, b"ten again")
    storage.write_chunk(other, 0, b"other")
    assert storage.read_chunk(job_id, 10) == b"ten again"
    storage.drop_chunks(job_id)
    storage.drop_chunks(job_id)
    with pytest.raises(NotFound):
        storage.read_chunk(job_id, 0)
    assert storage.read_chunk(other, 0) == b"other"


def test_peaks_are_read_as_they_were_written_and_outlive_the_chunks(storage: Storage) -> None:
    job_id, other = uuid4(), uuid4()
    storage.begin("peaks", job_id)
    storage.write_peaks(job_id, b"peaks")
    storage.write_peaks(job_id, b"peaks again")
    storage.drop_chunks(job_id)
    assert storage.read_peaks(job_id) == b"peaks again"
    with pytest.raises(NotFound):
        storage.read_peaks(other)


def test_erasing_a_job_deletes_all_of_it_and_reports_how_much(storage: Storage) -> None:
    job_id, other = uuid4(), uuid4()
    recording_id, others = store(storage, b"12345"), store(storage, b"other")
    storage.begin("chunks", job_id)
    storage.write_chunk(job_id, 0, b"123")
    storage.begin("peaks", job_id)
    storage.write_peaks(job_id, b"1234")
    for each in (job_id, other):
        storage.begin("results", each)
    storage.write_result(job_id, "transcript.txt", b"12")
    storage.write_result(other, "transcript.txt", b"other")
    assert storage.erase(job_id, recording_id) == Erased(4, 14)
    assert storage.erase(job_id, recording_id) == Erased()
    assert read(storage, others) == b"other"
    assert storage.erase(other, None) == Erased(1, 5)


def test_the_jobs_that_have_files_are_found(storage: Storage) -> None:
    assert [*storage.jobs_with("chunks"), *storage.jobs_with("results")] == []
    jobs = [uuid4() for _ in range(3)]
    for job_id in jobs:
        storage.begin("chunks", job_id)
        storage.write_chunk(job_id, 0, b"123")
        storage.write_chunk(job_id, 1, b"123")
    storage.begin("results", jobs[0])
    storage.write_result(jobs[0], "transcript.txt", b"12")
    assert {each for page in storage.jobs_with("chunks") for each in page} == set(jobs)
    assert list(storage.jobs_with("results")) == [[jobs[0]]]
    storage.erase(jobs[0], None)
    assert list(storage.jobs_with("results")) == []


def test_nothing_can_be_written_for_a_job_erased_on_a_file_system(tmp_path: Path) -> None:
    storage = open_storage(StorageSettings(data_dir=tmp_path))
    job_id = uuid4()
    storage.begin("chunks", job_id)
    storage.begin("results", job_id)
    storage.begin("peaks", job_id)
    storage.erase(job_id, None)
    with pytest.raises(NotFound):
        storage.write_chunk(job_id, 0, b"123")
    with pytest.raises(NotFound):
        storage.write_peaks(job_id, b"1234")
    with pytest.raises(NotFound):
        storage.write_result(job_id, "transcript.txt", b"12")
    assert not [path for path in tmp_path.rglob("*") if str(job_id) in str(path)]


def test_a_recording_is_offered_under_its_name(storage: Storage) -> None:
    offered = storage.offer(
        store(storage, b"audio"),
        media_type="audio/mpeg",
        disposition="attachment; filename=\"a.mp3\"; filename*=utf-8''%C3%A2.mp3",
    )
    if isinstance(offered, Path):
        assert offered.read_bytes() == b"audio"
        return
    assert isinstance(offered, str)
    answer = httpx.get(offered, headers={"Range": "bytes=1-"}, trust_env=False)
    assert answer.content == b"udio"
    assert answer.headers["content-type"] == "audio/mpeg"
    assert answer.headers["content-disposition"].endswith("%C3%A2.mp3")


# --- over S3 --------------------------------------------------------------------------------------


def test_s3_without_a_bucket_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SetupProblem, match="S3_BUCKET"):
        open_storage(StorageSettings(data_dir=tmp_path, storage_backend="s3"))


def test_a_large_recording_is_sent_in_parts(s3: Storage, s3_server: S3Server) -> None:
    content = os.urandom(LARGE)
    recording_id = store(s3, content)
    (key,) = s3_server.names()
    assert key == f"steno/recordings/{recording_id}"
    assert s3_server.client.head_object(Bucket=BUCKET, Key=key)["ETag"].strip('"').endswith("-3")
    assert read(s3, recording_id) == content


def test_reading_a_recording_in_order_fetches_each_byte_once(s3: Storage, line: CutLine) -> None:
    size = 3 * BLOCK_BYTES + 10
    recording_id = store(s3, bytes(size))
    before = line.received
    with s3.open_recording(recording_id) as file:
        file.seek(-128, os.SEEK_END)
        file.read(128)
        file.seek(0)
        while file.read(65_536):
            continue
    assert size < line.received - before < size + 20_000


def test_reading_the_start_of_a_recording_does_not_fetch_all(s3: Storage, line: CutLine) -> None:
    recording_id = store(s3, bytes(5 * BLOCK_BYTES))
    before = line.received
    with s3.open_recording(recording_id) as file:
        file.read(1000)
    assert line.received - before < 2 * BLOCK_BYTES


def test_a_connection_cut_during_a_read_is_replaced(s3: Storage, line: CutLine) -> None:
    content = os.urandom(2 * BLOCK_BYTES)
    recording_id = store(s3, content)
    with s3.open_recording(recording_id) as file:
        line.cut_after = BLOCK_BYTES // 2
        assert file.read() == content
    assert line.cut_after is None


def test_a_storage_that_fails_while_a_recording_is_decoded_does_not_look_like_its_end(
    s3: Storage, line: CutLine, tmp_path: Path
) -> None:
    long = write_wav(tmp_path / "long.wav", noise(300))
    with s3.open_recording(store(s3, long.read_bytes())) as file:
        decoding = MonoDecoder(file)
        blocks = iter(decoding)
        next(blocks)
        line.cut()
        with pytest.raises(Unavailable):
            list(blocks)
    assert "truncated" not in decoding.warnings


def test_a_storage_that_cannot_be_reached_is_unavailable(s3: Storage, line: CutLine) -> None:
    recording_id = store(s3, b"audio")
    s3.incoming(recording_id).write_bytes(b"audio")
    line.cut()
    for call in (
        s3.check,
        lambda: s3.secure(recording_id),
        lambda: s3.write_result(uuid4(), "transcript.txt", b""),
        lambda: s3.erase(uuid4(), None),
        lambda: list(s3.unsettled(-1)),
    ):
        with pytest.raises(Unavailable):
            call()


@pytest.mark.parametrize("status", [400, 403, 405, 501])
def test_a_job_is_erased_on_a_server_that_deletes_one_object_at_a_time(
    s3_server: S3Server, open_s3: Callable[[str], Storage], status: int
) -> None:
    with OneByOne(s3_server) as google:
        google.status = status
        storage = open_s3(google.url)
        for _ in range(2):
            job_id, recording_id = uuid4(), uuid4()
            s3_server.client.put_object(
                Bucket=BUCKET, Key=f"steno/recordings/{recording_id}", Body=b"12345"
            )
            storage.write_chunk(job_id, 0, b"123")
            storage.write_chunk(job_id, 1, b"45")
            storage.write_result(job_id, "transcript.txt", b"12")
            assert storage.erase(job_id, recording_id) == Erased(4, 12)
            assert s3_server.names() == []
            assert storage.erase(job_id, recording_id) == Erased()
        assert google.rejected == 1, "it is asked once"
        storage.discard(uuid4())


def test_an_unavailable_server_is_not_taken_for_one_that_deletes_one_object_at_a_time(
    s3_server: S3Server, open_s3: Callable[[str], Storage]
) -> None:
    with OneByOne(s3_server) as google:
        google.status = 503
        storage = open_s3(google.url)
        job_id = uuid4()
        storage.write_chunk(job_id, 0, b"123")
        with pytest.raises(Unavailable):
            storage.drop_chunks(job_id)
        assert storage.read_chunk(job_id, 0) == b"123"
        google.status = 400
        storage.drop_chunks(job_id)
    assert s3_server.names() == []


def test_an_upload_that_a_dead_gateway_has_begun_is_ended(s3: Storage, s3_server: S3Server) -> None:
    key = f"steno/recordings/{uuid4()}"
    upload = s3_server.client.create_multipart_upload(Bucket=BUCKET, Key=key)
    s3_server.client.upload_part(
        Bucket=BUCKET, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"part"
    )
    assert s3_server.client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    assert unsettled(s3, -1) == set()
    assert not s3_server.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_old_files_of_a_dead_gateway_are_deleted_at_start(s3: Storage, tmp_path: Path) -> None:
    old, new = s3.incoming(uuid4()), s3.incoming(uuid4())
    for path in (old, new):
        path.write_bytes(b"audio")
    long_ago = time.time() - 2 * 3600
    os.utime(old, (long_ago, long_ago))
    open_storage(StorageSettings(data_dir=tmp_path))
    assert not old.exists()
    assert new.exists()
