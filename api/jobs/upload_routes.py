"""Recordings come in."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.auth.callers import Transcriber
from api.http.bodies import Body
from api.http.problems import ClosingAnswer, documented, problem
from api.jobs.idempotency import PARAMETER
from api.jobs.schemas import Accepted, UploadOptions
from api.jobs.uploads import AwaitedUpload, Upload
from api.services import ServicesDep
from common.errors import StenoError

router = APIRouter(tags=["jobs"])


def _form(*, options: bool = True) -> dict[str, Any]:
    schema = UploadOptions.model_json_schema()
    if not options:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    file = {"type": "string", "format": "binary", "description": "The recording, or a video of it."}
    others = {name: _as_sent(option) for name, option in schema["properties"].items()}
    schema["properties"] = {"file": file, **others}
    schema["required"] = ["file"]
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _as_sent(option: dict[str, Any]) -> dict[str, Any]:
    """An option's schema without null, which no form can send.

    Swagger UI fills the form with examples, and where there are none it makes some up, such as
    the largest temperature: so there is an empty one, which counts as not sent.
    """
    kinds = [kind for kind in option.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return option
    said = {key: it for key, it in option.items() if key != "anyOf"}
    return {**kinds[0], "examples": [""], **said}


@router.post(
    "/upload",
    summary="Send a recording",
    response_model=Accepted,
    responses=documented(400, 408, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": _form(), "parameters": [PARAMETER]},
)
async def upload(
    request: Request, services: ServicesDep, caller: Transcriber
) -> Accepted | Response:
    """Send a recording; answered once it is safe. Options may come before or after the file.

    Accepted by content, not by name: mp3, wav, m4a, mp4, aac, ogg, opus, flac, wma, webm, mkv,
    avi, mov and more; of a video, its sound.
    """
    return await _accept(Upload(services, caller), request)


@router.post(
    "/jobs/{job_id}/upload",
    summary="Send the recording of a job that waits for it",
    response_model=Accepted,
    responses=documented(400, 404, 408, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": _form(options=False)},
)
async def upload_awaited(
    job_id: UUID, request: Request, services: ServicesDep, caller: Transcriber
) -> Accepted | Response:
    """Send the recording of a job that was made by `POST /jobs`: once."""
    return await _accept(AwaitedUpload(services, caller, job_id), request)


async def _accept(upload: Upload | AwaitedUpload, request: Request) -> Accepted | Response:
    body = Body(request)
    try:
        return await upload.accept(request, body)
    except StenoError as error:
        answer = problem(error)
        return answer if body.ended else ClosingAnswer(answer)
