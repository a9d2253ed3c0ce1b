"""Routes for administrators to give a tenant its own server of language models."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from loguru import logger
from pydantic import Field, WithJsonSchema
from starlette.status import HTTP_204_NO_CONTENT

from api.auth.callers import Admin
from api.http.fields import Document, OneLine, RequestDocument
from api.http.problems import documented
from api.services import ServicesDep
from common.db.chat_servers import NewChatServer
from common.db.tables import StoredChatServer
from common.errors import NotFound, OutOfRange
from common.llm.servers import LONGEST_KEY, checked_server
from common.net.egress import MAX_URL_LENGTH
from common.settings import AnswerTokens, ContextTokens

router = APIRouter(
    prefix="/enhanced-ai/server", tags=["enhanced-ai"], responses=documented(422, 503)
)


class NewServer(RequestDocument):
    """A tenant's own server of language models: any with the chat completions of OpenAI's API."""

    base_url: Annotated[str, Field(max_length=MAX_URL_LENGTH)] = Field(
        examples=["https://models.example.org/v1"]
    )
    """URL of its API."""
    model: OneLine
    """The model, as the server names it; of requests that name none."""
    # Not validated here: errors of validation repeat the value.
    api_key: Annotated[
        Any, WithJsonSchema({"type": "string", "minLength": 1, "maxLength": LONGEST_KEY})
    ] = None
    """Its key, if it wants one: printable ASCII. It is not shown again."""
    context_tokens: ContextTokens | None = None
    """Context of the model, request and answer together; by default ENHANCED_AI_CONTEXT_TOKENS."""
    max_output_tokens: AnswerTokens | None = None
    """Longest answer to one request; by default ENHANCED_AI_MAX_OUTPUT_TOKENS."""

    def checked(self) -> NewChatServer:
        """The server as it is stored.

        Raises:
            UrlRefused, OutOfRange: its URL or its key can be none.
        """
        if self.api_key is not None and not isinstance(self.api_key, str):
            raise OutOfRange(field="api_key", limit="text", value=type(self.api_key).__name__)
        return checked_server(NewChatServer(**self.model_dump()))


class ServerDocument(Document):
    """A tenant's own server, without its key."""

    base_url: str
    model: str
    has_key: bool
    context_tokens: int | None
    max_output_tokens: int | None
    """Null: those of the settings."""
    updated_at: datetime


@router.get("", summary="Get the tenant's language model server", responses=documented(404))
async def read_server(services: ServicesDep, caller: Admin) -> ServerDocument:
    """The server that this tenant uses in place of that of the settings; 404 if it has none."""
    found = await services.in_thread(services.chat_servers(caller.tenant).find)
    if found is None:
        raise NotFound(what="language model server of tenant", value=caller.tenant)
    return _document(found)


@router.put("", summary="Set the tenant's language model server")
async def set_server(wanted: NewServer, services: ServicesDep, caller: Admin) -> ServerDocument:
    """Replace all of it, its key too. Jobs that began with another URL fail, and say so."""
    server = wanted.checked()
    await services.egress.check(server.base_url, "base_url")
    stored = await services.in_thread(services.chat_servers(caller.tenant).put, server)
    logger.info("tenant {tenant} has a language model server of its own", tenant=caller.tenant)
    return _document(stored)


@router.delete(
    "",
    status_code=HTTP_204_NO_CONTENT,
    summary="Remove the tenant's language model server",
    responses=documented(404),
)
async def remove_server(services: ServicesDep, caller: Admin) -> None:
    """Delete it with its key: the tenant uses that of the settings again."""
    await services.in_thread(services.chat_servers(caller.tenant).remove)
    logger.info("tenant {tenant} has no language model server of its own", tenant=caller.tenant)


def _document(stored: StoredChatServer) -> ServerDocument:
    return ServerDocument(
        base_url=stored.base_url,
        model=stored.model,
        has_key=stored.api_key is not None,
        context_tokens=stored.context_tokens,
        max_output_tokens=stored.max_output_tokens,
        updated_at=stored.updated_at,
    )
