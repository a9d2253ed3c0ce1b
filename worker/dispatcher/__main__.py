"""Runs the dispatcher, the cleanup and the webhook sender in one process."""

from __future__ import annotations

import signal
from types import FrameType

from loguru import logger

from common.domain.pipeline import StepKind
from common.errors import StenoError
from common.process.logs import set_up_logging
from common.redis.queue import connect
from common.settings import load_settings
from worker.compose import build_steps, redis_url, wait_for_services
from worker.dispatcher.cleanup import build_cleanup
from worker.dispatcher.dispatcher import Dispatcher
from worker.dispatcher.webhooks import build_webhook_sender

LONGEST_END_S = 9
"""The process exits at most so many seconds after a signal to stop."""


def main() -> None:
    """Dispatch until SIGTERM or SIGINT."""
    try:
        settings = load_settings()
        set_up_logging(settings.log, "dispatcher")
        redis = connect(redis_url(settings))
        wait_for_services(settings, redis)
        cleanup = build_cleanup(settings)
        sender = build_webhook_sender(settings)

        def wake() -> None:
            sender.wake()
            cleanup.wake()

        dispatcher = Dispatcher(
            build_steps(settings),
            redis,
            job_timeout_s=settings.job.job_timeout,
            on_change=wake,
            at_once={StepKind.ASK: settings.enhanced_ai.concurrency},
        )
    except StenoError as error:
        logger.error("{}", error)
        raise SystemExit(1) from None

    def stop(_signal: int, _frame: FrameType | None) -> None:
        # A hung server may block the exit. Nothing is lost by this one.
        signal.alarm(LONGEST_END_S)
        dispatcher.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    sender.start()
    cleanup.start()
    dispatcher.run()
    cleanup.stop()
    sender.stop()
    logger.info("stopped")


if __name__ == "__main__":
    main()
