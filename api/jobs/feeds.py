"""Jobs as their watchers see them, read once for all: a watcher costs memory, not a connection."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from uuid import UUID

from loguru import logger

from api.jobs.changes import JobChanges
from api.services import Services
from common.db.snapshots import Snapshot
from common.domain.job import is_final
from common.domain.values import Segment
from common.errors import Busy, NotFound, Transient
from common.transcripts import GrowingTranscript

Growth = tuple[Snapshot, list[Segment]]
"""A job's snapshot, and the segments that are new since the last reading."""
Read = Callable[[], Awaitable[Growth]]

REREAD_S = 15.0
"""How often a job is read where no notification arrives."""
DEBOUNCE_S = 0.25
"""Changes that follow each other sooner are reported as one."""
OUTAGE_PAUSE_S = 2.0


class JobFeed:
    """One job as its watchers see it; `changed` is replaced by a new event at each change."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        """None until the first reading, and once the job is deleted."""
        self.segments: list[Segment] = []
        self.over = False
        """Nothing more will change: the job has ended or is deleted, or this process stops."""
        self.changed = asyncio.Event()
        self.watchers = 0
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    def take(self, growth: Growth) -> None:
        self.snapshot, new = growth
        self.segments += new
        self.over = is_final(self.snapshot.status)
        self.notify()

    def notify(self) -> None:
        previous, self.changed = self.changed, asyncio.Event()
        previous.set()


class JobFeeds:
    """The feeds of one process, for at most ``limit`` watchers, ``limit_each`` of each tenant."""

    def __init__(self, changes: JobChanges, *, limit: int, limit_each: int) -> None:
        self._changes = changes
        self._limit = limit
        self._limit_each = limit_each
        self._feeds: dict[tuple[str, UUID], JobFeed] = {}
        self._watchers: Counter[str] = Counter()
        """Number of watchers by tenant."""

    @asynccontextmanager
    async def watch(self, tenant: str, job_id: UUID, read: Read) -> AsyncIterator[JobFeed]:
        """The job's feed after its first reading; later watchers share the first one's ``read``.

        Raises:
            NotFound: there is no such job.
            Unavailable: the database is unavailable.
            Busy: there are too many watchers.
        """
        if self._watchers.total() >= self._limit or self._watchers[tenant] >= self._limit_each:
            raise Busy(what="Watching jobs")
        key = tenant, job_id
        feed = self._feeds.get(key)
        if feed is None or feed.over:
            feed = self._feeds[key] = JobFeed()
            feed.task = asyncio.create_task(self._follow(feed, job_id, read))
        feed.watchers += 1
        self._watchers[tenant] += 1
        try:
            await asyncio.shield(feed.begun)
            yield feed
        finally:
            feed.watchers -= 1
            self._watchers[tenant] -= 1
            if not self._watchers[tenant]:
                del self._watchers[tenant]
            if not feed.watchers:
                if self._feeds.get(key) is feed:
                    del self._feeds[key]
                if feed.task is not None:
                    feed.task.cancel()

    async def _follow(self, feed: JobFeed, job_id: UUID, read: Read) -> None:
        with self._changes.watch(job_id) as woken:
            while not feed.over:
                woken.clear()
                pause_s = REREAD_S
                try:
                    feed.take(await read())
                except NotFound as error:  # or it is deleted now
                    feed.snapshot, feed.over = None, True
                    self._begin(feed, error)
                except Transient as error:
                    # Earlier watchers keep what they have; new ones get the error.
                    logger.warning("job {job_id} cannot be watched: {}", error, job_id=job_id)
                    feed.over = not feed.begun.done()
                    self._begin(feed, error)
                    pause_s = OUTAGE_PAUSE_S
                except Exception as error:
                    logger.exception("job {job_id} cannot be watched", job_id=job_id)
                    feed.over = True
                    self._begin(feed, error)
                else:
                    self._begin(feed)
                feed.over = feed.over or self._changes.closing
                if feed.over:
                    feed.notify()
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), pause_s)
                await asyncio.sleep(DEBOUNCE_S)

    @staticmethod
    def _begin(feed: JobFeed, error: Exception | None = None) -> None:
        if feed.begun.done():
            return
        if error is None:
            feed.begun.set_result(None)
        else:
            feed.begun.set_exception(error)
            feed.begun.exception()  # asyncio need not log it where no watcher is left


def watch_job(
    services: Services, tenant: str, job_id: UUID
) -> AbstractAsyncContextManager[JobFeed]:
    """The job's feed; see `JobFeeds.watch`."""
    transcript = GrowingTranscript(services.jobs(tenant), job_id)
    return services.get(JobFeeds).watch(tenant, job_id, lambda: services.in_thread(transcript.read))
