"""Routes to upload recordings."""

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
    file = {"type": "string", "format": "binary", "description": "The recording, audio or video."}
    others = {name: _as_sent(option) for name, option in schema["properties"].items()}
    schema["properties"] = {"file": file, **others}
    schema["required"] = ["file"]
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _as_sent(option: dict[str, Any]) -> dict[str, Any]:
    """An option's schema without null, which no form can send.

    Swagger UI fills the form with examples, and where there are none it invents them, such as the
    largest temperature. An empty example counts as not sent.
    """
    kinds = [kind for kind in option.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return option
    kept = {key: it for key, it in option.items() if key != "anyOf"}
    return {**kinds[0], "examples": [""], **kept}


@router.post(
    "/upload",
    summary="Upload a recording",
    response_model=Accepted,
    responses=documented(400, 408, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": _form(), "parameters": [PARAMETER]},
)
async def upload(
    request: Request, services: ServicesDep, caller: Transcriber
) -> Accepted | Response:
    """Upload a recording; the response follows once it is stored.

    Options may come before or after the file. Formats are detected by content, not by name: mp3,
    wav, m4a, mp4, aac, ogg, opus, flac, wma, webm, mkv, avi, mov and more; of a video, its audio.
    """
    return await _accept(Upload(services, caller), request)


@router.post(
    "/jobs/{job_id}/upload",
    summary="Upload the recording of a job that waits for it",
    response_model=Accepted,
    responses=documented(400, 404, 408, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": _form(options=False)},
)
async def upload_awaited(
    job_id: UUID, request: Request, services: ServicesDep, caller: Transcriber
) -> Accepted | Response:
    """Upload the recording of a job that `POST /jobs` has created: once."""
    return await _accept(AwaitedUpload(services, caller, job_id), request)


async def _accept(upload: Upload | AwaitedUpload, request: Request) -> Accepted | Response:
    body = Body(request)
    try:
        return await upload.accept(request, body)
    except StenoError as error:
        answer = problem(error)
        return answer if body.ended else ClosingAnswer(answer)
