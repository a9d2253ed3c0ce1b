"""Which weights workers announce to the gateways."""

from __future__ import annotations

from pathlib import Path

from redis import Redis

from common.redis import presence
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from worker.announcement import Announcement

WORKER = "one-1-abcdef"
OWN = ("faster-whisper", "own")


def test_weights_whose_files_come_one_after_the_other_are_announced(
    redis_url: str, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    with Redis.from_url(redis_url) as redis:
        redis.sadd(f"rq:workers:{presence.QUEUE_NAME}", f"{presence.WORKER}{WORKER}")
        announcement = Announcement(redis, WORKER, WeightsStore(models, Manifest.load()))
        announcement.renew()
        assert presence.weights(redis) == set()

        folder = models / "own"
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
        announcement.renew()
        assert presence.weights(redis) == set()

        for name in ("tokenizer.json", "vocabulary.txt", "model.bin"):
            (folder / name).touch()
        announcement.renew()
        assert presence.weights(redis) == {OWN}


def test_a_report_that_cannot_be_read_counts_as_none(redis_url: str) -> None:
    with Redis.from_url(redis_url) as redis:
        for name in (WORKER, "two-2-abcdef"):
            redis.sadd(f"rq:workers:{presence.QUEUE_NAME}", f"{presence.WORKER}{name}")
        for report in ("{", "3", "[3]", '["abc"]', "\xff"):
            redis.set(f"{presence.WEIGHTS}{WORKER}", report)
            assert presence.weights(redis) is None
        presence.report_weights(redis, "two-2-abcdef", [OWN])
        assert presence.weights(redis) == {OWN}
