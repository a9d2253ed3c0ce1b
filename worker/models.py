"""The models on this machine, which are fetched where they are missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from loguru import logger
from redis import Redis
from redis.exceptions import RedisError

from common.domain.models import ModelName
from common.errors import (
    ModelFetchFailed,
    PullFailed,
    UnknownOption,
    WeightsCorrupt,
    WeightsMissing,
    WeightsUnusable,
)
from common.redis import presence
from common.weights.store import Weights, WeightsStore

LOWEST_RATE = 100_000
"""Bytes a second: a slower download counts as hung."""


class Models:
    """The weights of one worker; ``auto_fetch``: fetch missing ones from where they are published.

    Failures are remembered in ``redis``. Only one process at a time downloads the same weights into
    a folder; others wait for it.
    """

    def __init__(
        self, store: WeightsStore, redis: Redis | None = None, *, auto_fetch: bool = False
    ) -> None:
        self.store = store
        self._redis = redis
        self._auto_fetch = auto_fetch

    def resolve(self, name: ModelName) -> Weights:
        """The weights of this name; fetches them where they are missing.

        Raises:
            WeightsMissing: they are missing, and may not or cannot be fetched.
            WeightsCorrupt, WeightsUnusable: they are present, but wrong.
            ModelFetchFailed: no source had them, or this machine cannot store them; retried.
        """
        try:
            return self.store.resolve(name.engine, name.model)
        except WeightsMissing:
            if not self._can_fetch(name):
                raise
            return self._fetch(name)

    def first_present(self, names: Iterable[ModelName]) -> ModelName | None:
        """The first of these that is here and whole."""
        for name in names:
            with suppress(UnknownOption, WeightsMissing, WeightsCorrupt, WeightsUnusable):
                self.store.resolve(name.engine, name.model)
                return name
        return None

    def have_one(self, names: Sequence[ModelName]) -> ModelName:
        """The first of these that is here, or can be fetched.

        Those that no source had lately are tried last.

        Raises:
            ModelFetchFailed: none is, and none could be fetched; the last failure.
            WeightsMissing: none is, and none may be fetched.
        """
        failure: ModelFetchFailed | WeightsMissing = WeightsMissing(
            engine=names[0].engine, model=names[0].model
        )
        failed = self._failed_lately()
        for tried in (set(names) - failed, failed):
            for name in names:
                if self.first_present([name]):
                    return name
                if name not in tried or not self._can_fetch(name):
                    continue
                try:
                    self._fetch(name)
                except ModelFetchFailed as error:
                    logger.warning("{}", error)
                    failure = error
                else:
                    return name
        raise failure

    def advice(self, name: ModelName) -> str:
        """That the model is not installed, and what installs it if it is published."""
        published = self.store.manifest.get(name.engine, name.model) is not None
        return f"{name} is not installed" + (f"; run: {name.pull_command}" if published else "")

    def fetch_limit_s(self, names: Iterable[ModelName]) -> float:
        """Seconds that having one of these may take: those up to the first that is here."""
        size = 0
        for name in names:
            if self.first_present([name]):
                break
            if self._can_fetch(name):
                size += self.store.spec(name.engine, name.model).size
        return size / LOWEST_RATE

    def _can_fetch(self, name: ModelName) -> bool:
        return self._auto_fetch and self.store.manifest.has_source(name.engine, name.model)

    def _failed_lately(self) -> set[ModelName]:
        if self._redis is None:
            return set()
        with suppress(RedisError):
            return {ModelName(*pair) for pair in presence.failed_fetches(self._redis)}
        return set()

    def _fetch(self, name: ModelName) -> Weights:
        from common.weights.pull import Puller  # slow to import, and rarely needed

        logger.info("fetching {}", name)
        try:
            weights = Puller(self.store, progress=_log).pull(name.engine, name.model)
        except OSError as error:  # of this machine alone
            reason = f"{self.store.root} cannot be written: {error.strerror or error}"
            raise ModelFetchFailed(model=name.model, reason=reason) from error
        except PullFailed as error:
            self._note_failure(name)
            raise ModelFetchFailed(**error.details) from error
        logger.info("fetched {}", name)
        return weights

    def _note_failure(self, name: ModelName) -> None:
        if self._redis is None:
            return
        with suppress(RedisError):
            presence.report_failed_fetch(self._redis, name.engine, name.model)


def _log(_done: int, total: int, what: str) -> None:
    if total == 0:  # a message of its own
        logger.info("{}", what)
