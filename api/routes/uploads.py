"""Recordings come in."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.caller import Transcriber
from api.gateway import GatewayDep
from api.problems import Refusal, documented, problem
from api.schemas import Accepted, UploadOptions
from api.uploads import Body, Upload
from common.errors import StenoError

router = APIRouter(tags=["jobs"])


def _form() -> dict[str, Any]:
    schema = UploadOptions.model_json_schema()
    file = {"type": "string", "format": "binary", "description": "The recording, or a video of it."}
    options = {name: _as_sent(option) for name, option in schema["properties"].items()}
    schema["properties"] = {"file": file, **options}
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
    responses=documented(400, 408, 413, 415, 422, 503),
    openapi_extra={"requestBody": _form()},
)
async def upload(request: Request, gateway: GatewayDep, caller: Transcriber) -> Accepted | Response:
    """Send a recording; answered once it is safe. Options may come before or after the file.

    Accepted by content, not by name: mp3, wav, m4a, mp4, aac, ogg, opus, flac, wma, webm, mkv,
    avi, mov and more; of a video, its sound.
    """
    body = Body(request)
    try:
        return await Upload(gateway, caller).take_in(request, body)
    except StenoError as error:
        answer = problem(error)
        return answer if body.ended else Refusal(answer)
