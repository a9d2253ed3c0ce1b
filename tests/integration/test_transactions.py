"""How often a worker asks Postgres while it does a chunk."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import event

from common.db.jobs import Jobs
from common.db.steps import Claim
from common.domain.pipeline import StepKind
from common.domain.request import Options
from common.redis.queue import connect
from common.settings import Settings
from tests.support.factories import MODERATED, TENANT, claim_next, new_job, new_recording
from tests.support.service import write_wav
from tests.support.speech import speak
from worker.compose import build_context
from worker.context import Context
from worker.steps import moderate, plan, transcribe

pytestmark = pytest.mark.usefixtures("weights_dir")


@pytest.fixture
def context(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Context:
    """What a worker has that goes on with what follows, but not from the plan to a chunk."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return build_context(Settings(), connect(redis_url))


@pytest.mark.parametrize(("options", "most"), [(Options(), 2), (MODERATED, 3)])
def test_a_chunk_takes_three_transactions_at_most(
    context: Context, options: Options, most: int
) -> None:
    recording = new_recording()
    write_wav(context.storage.incoming(recording.id), speak("The quick brown fox jumps."))
    Jobs(context.steps._database, TENANT).submit(recording, new_job(options=options))
    context.storage.keep(recording.id)
    claim = plan.run(context, claim_next(context.steps))
    assert claim is not None
    # As if another worker had planned it.
    context.steps.hand_back(claim.worker, claim.step_id)
    begun: list[object] = []
    event.listen(context.steps._database._engine, "begin", begun.append)

    chunk = claimed(context, claim)
    following = transcribe.run(context, chunk)
    if options.moderation:
        assert following is not None
        following = moderate.run(context, following)

    assert following is not None
    assert following.kind == StepKind.MERGE
    assert len(begun) == most


def claimed(context: Context, claim: Claim) -> Claim:
    again = context.steps.claim(claim.step_id, "another")
    assert again is not None
    return again
