"""The cleanup: removes expired and abandoned data, and verifies deletions."""

from __future__ import annotations

import threading
import time
from typing import get_args
from uuid import UUID

from loguru import logger

from common.db.database import Database
from common.db.deletions import record_erased
from common.db.retention import Retention
from common.errors import Transient
from common.redis.events import Events
from common.redis.queue import connect
from common.settings import Settings
from common.storage.opening import open_storage
from common.storage.storage import Made, Storage
from worker.compose import database_url, redis_url
from worker.dispatcher.pace import Pace

CLEAN_S = 1.0
IDLE_POLL_S = 10.0
"""The polling interval, should a notification be lost."""
TIDY_S = 3600.0
"""How often all results are listed, and over S3 all recordings."""
PAUSE_S = 5.0
"""The pause after an error."""
STOP_GRACE_S = 3.0
BATCH = 100
TEXTS = 20
"""Earlier texts that are indexed in one turn."""
OUTAGE_GRACE_S = 30.0
"""How long streams may take after an outage to send a heartbeat, which none could before."""
ABANDONED_S = 3600.0
"""An upload that has not grown for this long is abandoned."""


class Cleanup:
    """Runs in a thread of the dispatcher's process, so that a slow storage delays no step."""

    def __init__(
        self,
        retention: Retention,
        storage: Storage,
        events: Events,
        *,
        upload_wait_s: float,
        review_s: float = 0.0,
    ) -> None:
        """``review_s``: how long jobs wait in REVIEW; 0: for ever."""
        self._retention = retention
        self._storage = storage
        self._events = events
        self._upload_wait_s = upload_wait_s
        self._review_s = review_s
        self._streams_expire_from = 0.0
        self._pace = Pace(IDLE_POLL_S)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cleanup", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Check soon for due work; may be called from any thread."""
        self._pace.wake()

    def stop(self) -> None:
        """Stop after the current task, or after `STOP_GRACE_S`: every task can be repeated."""
        self._stopping.set()
        self._pace.wake()
        self._thread.join(STOP_GRACE_S)

    def _run(self) -> None:
        tidied = float("-inf")
        pause_s = 0.0
        while not self._stopping.wait(pause_s):
            self._pace.wait()
            try:
                if self._pace.is_due():
                    due_s = self._retention.next_due_s(self._upload_wait_s, self._review_s)
                    if due_s is not None and due_s <= 0:
                        self.clean()
                    self._pace.rest(due_s)
                if time.monotonic() - tidied >= TIDY_S:
                    self.tidy()
                    tidied = time.monotonic()
                pause_s = CLEAN_S
            except Transient as error:
                logger.warning("cleanup waits for a service: {}", error)
                self._streams_expire_from = time.monotonic() + OUTAGE_GRACE_S
                pause_s = PAUSE_S
            except Exception:  # no error may end the cleanup
                logger.exception("cleanup failed")
                pause_s = PAUSE_S

    def clean(self) -> None:
        """Do what is due according to Postgres."""
        while self._retention.sweep(self._drop_chunks) and not self._stopping.is_set():
            continue
        for job_id in self._retention.cancel_unsent(self._upload_wait_s):
            logger.info("job {job_id}: cancelled, no recording was uploaded", job_id=job_id)
            self._events.job_changed(job_id)
        self._end_reviews()
        for job_id in self._retention.expired(BATCH):
            if (deleted := self._retention.expire(job_id)) is not None:
                logger.info("job {job_id}: deleted, its retention period is over", job_id=job_id)
                self._events.job_changed(job_id)
                self._erase(job_id, deleted.recording_id)
        if time.monotonic() >= self._streams_expire_from:
            for stream_id in self._retention.end_silent_streams():
                logger.warning(
                    "stream {stream_id}: ended, no heartbeat from its gateway", stream_id=stream_id
                )
        while not self._stopping.is_set() and (expired := self._retention.expire_stream()):
            logger.info(
                "stream {stream_id}: deleted, its retention period is over", stream_id=expired
            )
        for deleted in self._retention.deleted(BATCH):
            if self._erase(deleted.job_id, deleted.recording_id) == 0:
                logger.info("job {job_id}: erasure verified", job_id=deleted.job_id)
                self._retention.verified(deleted.job_id)
        self._index()

    def _index(self) -> None:
        """Index some of the texts that a search does not find yet; the rest at the next turns."""
        indexed = 0
        while indexed < TEXTS and not self._stopping.is_set() and self._retention.index():
            indexed += 1
        if indexed:
            logger.info("{} earlier text(s) can be searched now", indexed)

    def _end_reviews(self) -> None:
        while self._review_s and not self._stopping.is_set():
            job_id = self._retention.end_review(self._review_s)
            if job_id is None:
                return
            logger.info("job {job_id}: completed, nobody approved it in time", job_id=job_id)
            self._events.job_changed(job_id)

    def tidy(self) -> None:
        """Settle abandoned uploads, and erase what workers wrote after the end of a job."""
        for page in self._storage.unsettled(ABANDONED_S):
            committed = self._retention.committed_recordings(page)
            for recording_id in page:
                self._settle(recording_id, committed=recording_id in committed)
        for made in get_args(Made):
            for page in self._storage.jobs_with(made):
                for job_id in self._retention.missing(page):
                    logger.warning(
                        "job {job_id}: erasing {} written after its deletion", made, job_id=job_id
                    )
                    self._erase(job_id, None)
                if made == "chunks":
                    self._retention.sweep_again(page)

    def _settle(self, recording_id: UUID, *, committed: bool) -> None:
        try:
            if committed:
                self._storage.keep(recording_id)
            else:
                logger.info("recording {}: discarded, its upload was not finished", recording_id)
                self._storage.discard(recording_id)
        except Transient as error:
            logger.warning("recording {} cannot be settled now: {}", recording_id, error)

    def _drop_chunks(self, job_id: UUID) -> bool:
        try:
            self._storage.drop_chunks(job_id)
            for recording_id in self._retention.unfetched(job_id):
                self._storage.discard(recording_id)
        except Transient as error:
            logger.warning(
                "job {job_id}: its chunks cannot be deleted now: {}", error, job_id=job_id
            )
            return False
        return True

    def _erase(self, job_id: UUID, recording_id: UUID | None) -> int | None:
        """Erase the files of a job; returns how many there were, None on a failure."""
        try:
            erased = self._storage.erase(job_id, recording_id)
        except Transient as error:
            logger.warning("job {job_id}: its files cannot be erased now: {}", error, job_id=job_id)
            return None
        if erased.files:
            database = self._retention.database
            record_erased(database, job_id, files=erased.files, size=erased.bytes)
        return erased.files


def build_cleanup(settings: Settings) -> Cleanup:
    """The cleanup, over connections of its own."""
    return Cleanup(
        Retention(Database(database_url(settings), pool_size=2), grace_s=settings.worker.lease),
        open_storage(settings.storage),
        Events(connect(redis_url(settings))),
        upload_wait_s=settings.job.upload_wait,
        review_s=settings.job.review_timeout,
    )
