"""Runs the dispatcher, and beside it the cleanup and the delivery of webhook messages."""

from __future__ import annotations

import signal
from types import FrameType

from loguru import logger

from common.errors import StenoError
from common.process.logs import set_up_logging
from common.redis.queue import connect
from common.settings import load_settings
from worker.compose import build_steps, redis_url, wait_for_services
from worker.dispatcher.cleanup import build_cleanup
from worker.dispatcher.dispatcher import Dispatcher
from worker.dispatcher.webhooks import build_webhook_sender

LONGEST_END_S = 9
"""After a signal to stop it ends within so many seconds."""


def main() -> None:
    """Dispatch until told to stop (SIGTERM, SIGINT)."""
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
            build_steps(settings), redis, job_timeout_s=settings.job.job_timeout, on_change=wake
        )
    except StenoError as error:
        logger.error("{}", error)
        raise SystemExit(1) from None

    def stop(_signal: int, _frame: FrameType | None) -> None:
        # Whatever holds it then, as a server that hangs may: nothing is lost by an end like that.
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
