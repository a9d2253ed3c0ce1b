"""Storage on an S3 server: AWS, MinIO, Ceph, Garage, R2 and many more.

Recordings are at ``recordings/<id>``, chunks' audio at ``chunks/<job>/<index>.pcm``, peaks at
``peaks/<job>/peaks.dat``, finished transcripts at ``results/<job>/<name>``, all below the prefix.
Machines share nothing but the bucket. An upload is written to a local folder first, as it is probed
before it is accepted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, BinaryIO, ParamSpec, TypeVar, cast, get_args
from uuid import UUID

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from loguru import logger

from common.errors import NotFound, SetupProblem, StenoError, StorageFull, Unavailable
from common.settings import StorageSettings
from common.storage.local import check_writable
from common.storage.ranges import BLOCK_BYTES, RangedFile
from common.storage.storage import Erased, Made, Storage, Stored, ids, storage_errors

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import ObjectTypeDef

P = ParamSpec("P")
T = TypeVar("T")

PART_BYTES = 16 << 20
"""Part of a multipart upload; S3 allows 10,000 parts, so 160 GB."""
PARTS_AT_ONCE = 4
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
FULL = frozenset({"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"})
UNSUPPORTED = frozenset({400, 403, 405, 501})
"""Answers of servers that do not support the deletion of several objects, or only with other
checksums. Where all deletions are forbidden, the first single one fails as well."""
TRIES = 4
FIRST_PAUSE_S = 0.2


def _with_retries(read: Callable[P, T]) -> Callable[P, T]:
    """Retry a read that broke off; the library itself only retries requests without an answer."""

    @wraps(read)
    def retried(*args: P.args, **kwargs: P.kwargs) -> T:
        for tries in range(1, TRIES):
            try:
                return read(*args, **kwargs)
            except Unavailable:
                time.sleep(FIRST_PAUSE_S * 2**tries)
        return read(*args, **kwargs)

    return retried


class S3Storage(Storage):
    """Objects in one bucket, which must exist; the settings ``S3_...`` say which, and how.

    Raises:
        SetupProblem: no bucket is set.
    """

    def __init__(self, settings: StorageSettings) -> None:
        if settings.s3_bucket is None:
            raise SetupProblem(
                problem="S3_BUCKET is not set",
                remedy="Name an existing bucket, or set STORAGE_BACKEND=local",
            )
        self._bucket = settings.s3_bucket
        self._prefix = settings.s3_prefix.strip("/") + "/" if settings.s3_prefix else ""
        self._temp = settings.temp
        self._access = settings.access
        self._links = settings.s3_links
        self._link_s = settings.s3_link_seconds
        self._client = _client(settings, settings.s3_endpoint_url)
        public_url = settings.s3_public_url
        self._public = self._client if public_url is None else _client(settings, public_url)
        self._deletes_at_once = True  # until the server does not support it

    def prepare(self) -> None:
        """Create the folder for uploads, and delete what crashed processes left in it."""
        with storage_errors():
            self._access.make_folder(self._temp)
        for recording_id in self._left_behind(older_than_s=3600):
            with storage_errors():
                self.incoming(recording_id).unlink(missing_ok=True)

    def check(self) -> None:
        check_writable(self._temp)
        with _s3_errors():
            self._client.head_bucket(Bucket=self._bucket)

    # --- recordings -----------------------------------------------------------------------------

    def secure(self, recording_id: UUID) -> None:
        """Upload a whole recording, in parts where it is large."""
        config = TransferConfig(
            multipart_threshold=PART_BYTES,
            multipart_chunksize=PART_BYTES,
            max_concurrency=PARTS_AT_ONCE,
        )
        with _s3_errors():
            self._client.upload_file(
                str(self.incoming(recording_id)),
                self._bucket,
                self._recording(recording_id),
                Config=config,
            )

    def keep(self, recording_id: UUID) -> None:
        """Delete the local copy."""
        with storage_errors():
            self.incoming(recording_id).unlink(missing_ok=True)

    def discard(self, recording_id: UUID) -> None:
        self.keep(recording_id)
        self._delete_one(self._recording(recording_id))

    def open_recording(self, recording_id: UUID) -> BinaryIO:
        head, size = self._range(recording_id, 0, BLOCK_BYTES)
        return cast("BinaryIO", RangedFile(size, head, partial(self._bytes, recording_id)))

    def offer(self, recording_id: UUID, *, media_type: str, disposition: str) -> str | Stored:
        """A signed URL; without links, its parts."""
        key = self._recording(recording_id)
        with _s3_errors(_missing(recording_id)):
            head = self._client.head_object(Bucket=self._bucket, Key=key)
            if not self._links:
                return Stored(head["ContentLength"], partial(self._bytes, recording_id))
            return self._public.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": key,
                    "ResponseContentType": media_type,
                    "ResponseContentDisposition": disposition,
                },
                ExpiresIn=self._link_s,
            )

    def unsettled(self, older_than_s: float) -> Iterator[list[UUID]]:
        """All older recordings: only the rows show which were never committed."""
        if left_behind := list(self._left_behind(older_than_s)):
            yield left_behind
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        self._abort_uploads(before)
        for page in self._pages(f"{self._prefix}recordings/"):
            old = [entry["Key"] for entry in page if entry["LastModified"] < before]
            if found := list(ids(key.rpartition("/")[2] for key in old)):
                yield found

    # --- chunks' audio --------------------------------------------------------------------------

    def write_chunk(self, job_id: UUID, index: int, pcm: bytes) -> None:
        self._put(f"{self._chunks(job_id)}{index}.pcm", pcm)

    @_with_retries
    def read_chunk(self, job_id: UUID, index: int) -> bytes:
        with _s3_errors(NotFound(what="stored audio of chunk", value=index)):
            key = f"{self._chunks(job_id)}{index}.pcm"
            return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def drop_chunks(self, job_id: UUID) -> None:
        self._erase_all(self._chunks(job_id))

    # --- peaks ----------------------------------------------------------------------------------

    def write_peaks(self, job_id: UUID, peaks: bytes) -> None:
        self._put(self._peaks(job_id), peaks)

    @_with_retries
    def read_peaks(self, job_id: UUID) -> bytes:
        with _s3_errors(NotFound(what="peaks of job", value=job_id)):
            key = self._peaks(job_id)
            return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    # --- finished transcripts -------------------------------------------------------------------

    def write_result(self, job_id: UUID, name: str, content: bytes) -> None:
        self._put(f"{self._results(job_id)}{name}", content)

    # --- everything of a job --------------------------------------------------------------------

    def begin(self, made: Made, job_id: UUID) -> None:
        """Nothing to do: a bucket has no folders."""

    def erase(self, job_id: UUID, recording_id: UUID | None) -> Erased:
        folders = (f"{self._prefix}{made}/{job_id}/" for made in get_args(Made))
        erased = sum(map(self._erase_all, folders), Erased())
        if recording_id is not None:
            self.keep(recording_id)
            erased += self._erase_all(self._recording(recording_id))
        return erased

    def jobs_with(self, made: Made) -> Iterator[list[UUID]]:
        prefix = f"{self._prefix}{made}/"
        with _s3_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix, Delimiter="/"
            )
            for page in pages:
                folders = [each["Prefix"] for each in page.get("CommonPrefixes", [])]
                if found := list(ids(name[len(prefix) : -1] for name in folders)):
                    yield found

    # --- objects --------------------------------------------------------------------------------

    def _recording(self, recording_id: UUID) -> str:
        return f"{self._prefix}recordings/{recording_id}"

    def _chunks(self, job_id: UUID) -> str:
        return f"{self._prefix}chunks/{job_id}/"

    def _peaks(self, job_id: UUID) -> str:
        return f"{self._prefix}peaks/{job_id}/peaks.dat"

    def _results(self, job_id: UUID) -> str:
        return f"{self._prefix}results/{job_id}/"

    def _put(self, key: str, content: bytes) -> None:
        with _s3_errors():
            self._client.put_object(Bucket=self._bucket, Key=key, Body=content)

    def _bytes(self, recording_id: UUID, start: int, count: int) -> bytes:
        return self._range(recording_id, start, count)[0]

    @_with_retries
    def _range(self, recording_id: UUID, start: int, count: int) -> tuple[bytes, int]:
        """Up to ``count`` bytes of a recording from ``start`` on, and its size."""
        with _s3_errors(_missing(recording_id)):
            answer = self._client.get_object(
                Bucket=self._bucket,
                Key=self._recording(recording_id),
                Range=f"bytes={start}-{start + count - 1}",
            )
            return answer["Body"].read(), int(answer["ContentRange"].rpartition("/")[2])

    def _pages(self, prefix: str) -> Iterator[list[ObjectTypeDef]]:
        with _s3_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix
            )
            for page in pages:
                yield page.get("Contents", [])

    def _erase_all(self, prefix: str) -> Erased:
        erased = Erased()
        for page in self._pages(prefix):
            if page:
                self._delete([entry["Key"] for entry in page])
                erased += Erased(len(page), sum(entry["Size"] for entry in page))
        return erased

    def _delete(self, keys: list[str]) -> None:
        """Delete a page's objects: all at once where the server supports it, else one by one."""
        if self._deletes_at_once and self._delete_at_once(keys):
            return
        for key in keys:
            self._delete_one(key)
        self._deletes_at_once = False

    def _delete_one(self, key: str) -> None:
        """Delete an object, if it exists; where it does not, only some servers return an error."""
        with suppress(NotFound), _s3_errors(NotFound(what="stored object", value=key)):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def _delete_at_once(self, keys: list[str]) -> bool:
        """Whether the server supports it."""
        with _s3_errors():
            try:
                answer = self._client.delete_objects(
                    Bucket=self._bucket,
                    Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True},
                )
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] not in UNSUPPORTED:
                    raise
                code = error.response["Error"].get("Code")
                logger.info("S3 cannot delete several objects at once: {}", code)
                return False
        if answer.get("Errors"):
            logger.warning("S3 did not delete an object: {}", answer["Errors"][0].get("Code"))
            raise Unavailable(what="The storage")
        return True

    def _abort_uploads(self, before: datetime) -> None:
        """Abort multipart uploads of crashed gateways: their parts cost as much as objects."""
        with _s3_errors():
            listed = self._client.list_multipart_uploads(
                Bucket=self._bucket, Prefix=f"{self._prefix}recordings/"
            )
            for upload in listed.get("Uploads", []):
                if upload["Initiated"] < before:
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )


def _missing(recording_id: UUID) -> NotFound:
    return NotFound(what="stored recording", value=recording_id)


def _client(settings: StorageSettings, endpoint_url: str | None) -> S3Client:
    secret = settings.s3_secret_access_key
    # A session of its own: the default one is not thread-safe.
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key_id,
        aws_secret_access_key=None if secret is None else secret.get_secret_value(),
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": settings.s3_addressing_style},
            connect_timeout=3,
            read_timeout=20,
            retries={"mode": "standard", "max_attempts": 3},
            max_pool_connections=4 * PARTS_AT_ONCE,
            # Many servers do not support the checksums that newer clients send by default.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


@contextmanager
def _s3_errors(missing: NotFound | None = None) -> Iterator[None]:
    """Convert the library's errors; a missing object becomes ``missing``.

    The reason is logged: S3's texts name buckets and keys, which are not secret.
    """
    try:
        with storage_errors():
            yield
    except ClientError as error:
        raise _ours(error, missing) from error
    except Boto3Error as error:  # an upload's, which hides its cause
        cause = error.__context__
        raise _ours(cause if isinstance(cause, ClientError) else error, missing) from error
    except BotoCoreError as error:
        raise _ours(error, missing) from error


def _ours(error: Exception, missing: NotFound | None) -> StenoError:
    code = error.response["Error"].get("Code", "") if isinstance(error, ClientError) else ""
    if missing is not None and code in MISSING:
        return missing
    if code in FULL:
        return StorageFull()
    logger.warning("S3: {} {}", type(error).__name__, code)
    return Unavailable(what="The storage")
