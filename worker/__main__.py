"""One worker: `python -m worker`. Start one per core; each keeps one engine on one thread."""

from __future__ import annotations

import os
import signal
import sys
from math import inf

from loguru import logger
from redis.exceptions import RedisError
from rq.serializers import JSONSerializer

from common.errors import StenoError
from common.net.reach import redis_trouble
from common.process.logs import set_up_logging
from common.redis.presence import HEARTBEAT_S, QUEUE_NAME, WORKER_TTL_S, own_name
from common.redis.queue import StepMessage, connect
from common.settings import load_settings
from common.storage.opening import open_storage
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from worker.announcement import Announcement
from worker.child import preload
from worker.compose import build_steps, redis_url, wait_for_services
from worker.warm import WarmWorker


def main() -> None:
    """Run steps until SIGTERM or SIGINT; `WarmWorker` says what happens to the current step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit())  # no step runs yet
    try:
        settings = load_settings()
        set_up_logging(settings.log, f"worker:{os.getpid()}")
        os.nice(settings.worker.nice)
        preload(settings.asr)
        open_storage(settings.storage)
        redis = connect(redis_url(settings))
        wait_for_services(settings, redis)
        worker = WarmWorker(
            [QUEUE_NAME],
            name=own_name(),
            connection=redis,
            serializer=JSONSerializer,
            job_class=StepMessage,
            job_monitoring_interval=HEARTBEAT_S,
            worker_ttl=WORKER_TTL_S,
            maintenance_interval=60,
            log_job_description=False,
        )
        store = WeightsStore(settings.asr.models_dir, Manifest.load())
        worker.steps = build_steps(settings)
        worker.announcement = Announcement(redis, worker.name, store)
        worker.stop_period_s = settings.worker.stop_period
        worker.engine_idle_s = settings.asr.engine_idle or inf
        worker.start_engine()
        worker.work(logging_level="WARNING")
    except StenoError as error:
        logger.error("{}", error)
        raise SystemExit(1) from None
    except RedisError as error:
        logger.error("{}", redis_trouble(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
