"""Webhook messages are not lost: the short form of ``scripts/test --system webhooks``."""

from __future__ import annotations

from click.testing import CliRunner

from tests.system.webhooks import main


def test_messages_end_as_documented_at_bad_receivers_though_their_sender_is_killed() -> None:
    small = "--messages 2 --kills 2 --every 3 --timeout 2 --delays 0.2,0.2"
    result = CliRunner().invoke(main, small.split())
    assert result.exit_code == 0, result.output
    assert "13 of 13 ok" in result.output
