"""Ask: send one request about a transcript to a language model, and check its answer."""

from __future__ import annotations

from common.db.steps import Claim
from common.domain.enhancement import call_of, parse_part
from common.errors import AnswerRejected
from worker.context import Context, with_retries
from worker.steps.requests import part_of

AROUND_S = 60.0
"""For what is around the request: reading the transcript, and waiting for Postgres."""


def run(context: Context, claim: Claim) -> Claim | None:
    """Store what the answer to the claimed part comes to.

    An equal request that was answered before is not made again. After an answer that was rejected,
    the request says why.

    Raises:
        ChatUnavailable, AnswerBroken, AnswerTruncated, AnswerRejected: another attempt may succeed.
        ChatKeyLocked: another worker may have the key.
        ChatRejected, ChatServerChanged, AnswerWithheld, EnhancementOff, UrlRefused: it would fail
            again.
        StaleClaim, Unavailable: as in every step.
    """
    part = claim.part
    assert part is not None  # noqa: S101 - it is a step of a part
    if claim.known is not None:
        reused = {**claim.known, "input_tokens": 0, "output_tokens": 0}
        return context.finish(claim, result=reused, elapsed_ms=0)
    material = with_retries(context.enhancing.material, claim.job)
    request = part_of(part.data, material)
    rejected = with_retries(context.enhancing.rejected, claim.job_id, part.index)
    call = call_of(material.work, request, rejected)
    chat = context.chat(claim.job)
    answer = chat.ask(call.messages, max_tokens=call.max_tokens, form=call.form)
    try:
        parsed = parse_part(material.work, request, answer.text)
    except AnswerRejected as error:
        error.cost = answer.cost
        raise
    result = {
        "result": parsed,
        "model": answer.model,
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
    }
    return context.finish(claim, result=result, elapsed_ms=answer.elapsed_ms)


def limit_s(context: Context, claim: Claim) -> float:  # noqa: ARG001
    """A little more than an answer may take."""
    return context.settings.enhanced_ai.timeout + AROUND_S
