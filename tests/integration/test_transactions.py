"""How many transactions a worker begins while it does a chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event

from common.db.jobs import Jobs
from common.db.steps import Claim
from common.domain.pipeline import StepKind
from common.domain.request import Options
from common.errors import OutcomeUnknown
from tests.support.factories import (
    MODERATED,
    TENANT,
    claim_next,
    new_job,
    new_recording,
    published,
)
from tests.support.service import write_wav
from tests.support.speech import speak
from worker.context import Context
from worker.runner import Runner
from worker.steps import moderate, plan, transcribe

pytestmark = pytest.mark.usefixtures("weights_dir")


@pytest.fixture
def context(worker_context: Callable[..., Context]) -> Context:
    return worker_context()


def submit(context: Context, options: Options) -> None:
    recording = new_recording()
    write_wav(context.storage.incoming(recording.id), speak("The quick brown fox jumps."))
    Jobs(context.steps._database, TENANT).submit(recording, new_job(options=options))
    context.storage.keep(recording.id)


@pytest.mark.parametrize(("options", "most"), [(Options(), 2), (MODERATED, 3)])
def test_a_chunk_takes_few_transactions(context: Context, options: Options, most: int) -> None:
    submit(context, options)
    claim = plan.run(context, claim_next(context.steps))
    assert claim is not None
    # As if another worker had planned it.
    context.steps.hand_back(claim.worker, claim.step_id)
    begun: list[object] = []
    event.listen(context.steps._database._engine, "begin", begun.append)

    chunk = context.steps.claim(claim.step_id, "another")
    assert chunk is not None
    following = transcribe.run(context, chunk)
    if options.moderation:
        assert following is not None
        following = moderate.run(context, following)

    assert following is not None
    assert following.kind == StepKind.MERGE
    assert len(begun) == most


def test_a_step_claimed_by_a_commit_of_unknown_outcome_is_handed_back_at_once(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(context, Options())
    (planning,) = published(context.steps)
    finish = context.steps.finish

    def finish_and_lose_the_answer(*args: Any, **kwargs: Any) -> Claim | None:
        monkeypatch.setattr(context.steps, "finish", finish)
        finish(*args, **kwargs)
        raise OutcomeUnknown(what="The database", reason="a test")

    monkeypatch.setattr(context.steps, "finish", finish_and_lose_the_answer)
    Runner(context, "worker-1", lambda _claim, _limit_s: None, lambda: None).run(planning, "one")

    following = claim_next(context.steps)
    assert (following.kind, following.attempt) == (StepKind.TRANSCRIBE, 2)
