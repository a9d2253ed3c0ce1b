"""Whose server of language models a tenant's requests go to: its own, or that of the settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.db.chat_servers import NewChatServer, key_of
from common.db.tables import StoredChatServer
from common.db.vault import Cipher
from common.errors import OutOfRange, UrlRefused
from common.llm.openai_chat import ChatServer, configured_server
from common.net.egress import parse_url
from common.settings import Settings

LONGEST_KEY = 2_000


@dataclass(frozen=True, slots=True)
class ServerInUse:
    """A tenant's server, and what its model can take; tokens as of `Budget`."""

    server: ChatServer
    context_tokens: int
    max_output_tokens: int
    is_own: bool


def server_in_use(settings: Settings, own: StoredChatServer | None, cipher: Cipher) -> ServerInUse:
    """The server ``own`` of a tenant, else that of the settings.

    Raises:
        EnhancementOff: there is neither.
        ChatKeyLocked: its key cannot be decrypted.
    """
    usual = settings.enhanced_ai
    if own is None:
        server = configured_server(settings)
        return ServerInUse(server, usual.context_tokens, usual.max_output_tokens, is_own=False)
    return ServerInUse(
        ChatServer(own.base_url, own.model, key_of(own, cipher)),
        own.context_tokens or usual.context_tokens,
        own.max_output_tokens or usual.max_output_tokens,
        is_own=True,
    )


def checked_server(server: NewChatServer) -> NewChatServer:
    """A tenant's server as it is stored. Check its address by `Egress.check`, too.

    Raises:
        UrlRefused, OutOfRange: its URL or its key can be none.
    """
    if parse_url(server.base_url, "base_url").query or "#" in server.base_url:
        # Errors and logs may show it, so no key may be in it.
        raise UrlRefused(field="base_url", reason="it has a query or a fragment")
    base_url = server.base_url.rstrip("/?")
    if server.api_key is not None and len(server.api_key) > LONGEST_KEY:
        limit, found = f"at most {LONGEST_KEY} characters long", f"{len(server.api_key)} characters"
        raise OutOfRange(field="api_key", limit=limit, value=found)
    ChatServer(base_url, server.model, server.api_key)
    return replace(server, base_url=base_url)
