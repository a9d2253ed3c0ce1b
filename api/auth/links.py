"""Links: addresses that allow one download for a while, as players and browsers send no key.

A link is the address of a download with one more parameter: a signature of all that the download
depends on, by HMAC. Its key is a random secret in Postgres, combined with SECRETS_KEY where that is
set. So it is the same for all gateways, survives restarts, does not depend on how well API keys are
chosen, and with SECRETS_KEY no backup of the database reveals it. As nothing is encrypted, nothing
has to be encrypted again when SECRETS_KEY changes: links that were signed with an earlier key are
valid as long as that is among its keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest, digest
from urllib.parse import urlencode
from uuid import UUID

from api.auth.key_cache import GATEWAY_KEY, KeyCache
from common.errors import LinkExpired, LinkInvalid

PARAMETER = "link"
_ALTERED = "it or its options were altered, or it is another gateway's"
_SIGNED = re.compile(r"(0|[1-9][0-9]{0,10})~([a-z0-9]*)~([A-Za-z0-9._-]+)~([0-9a-f]{64})", re.ASCII)

Options = Sequence[tuple[str, str]]
"""The parameters of a download, in order."""


@dataclass(frozen=True, slots=True)
class Signed:
    """Who made a link, and when it expires, in seconds since the epoch.

    ``key_id``: of the API key; None: none was required.
    """

    expires_at: int
    key_id: str | None
    tenant: str

    def __str__(self) -> str:
        return f"{self.expires_at}~{self.key_id or ''}~{self.tenant}"


class Links:
    """Signs links, and reads signed ones; ``secrets_keys`` are those of SECRETS_KEY."""

    def __init__(self, keys: KeyCache, secrets_keys: Sequence[str]) -> None:
        self._keys = keys
        self._combined_with = secrets_keys or ("",)

    async def sign(self, signed: Signed, job_id: UUID, options: Options) -> str:
        """The query of a link: the options of the download, and the signature.

        Raises:
            Unavailable: Postgres is.
        """
        first, *_ = await self._signatures(signed, job_id, options)
        return urlencode([*options, (PARAMETER, f"{signed}~{first}")])

    async def read(self, link: str, job_id: UUID, query: Options) -> Signed:
        """What is signed in the parameter ``link`` of a request with this ``query``.

        Raises:
            LinkInvalid: the signature is not that of this job and query.
            LinkExpired: it has expired.
            Unavailable: Postgres is.
        """
        match = _SIGNED.fullmatch(link)
        if match is None:
            raise LinkInvalid(reason=_ALTERED)
        expires_at, key_id, tenant, sent = match.groups()
        signed = Signed(int(expires_at), key_id or None, tenant)
        options = [each for each in query if each != (PARAMETER, link)]
        signatures = await self._signatures(signed, job_id, options)
        if not any(compare_digest(sent, each) for each in signatures):
            raise LinkInvalid(reason=_ALTERED)
        expires = datetime.fromtimestamp(signed.expires_at, UTC)
        if expires <= datetime.now(UTC):
            raise LinkExpired(value=expires.isoformat())
        return signed

    async def _signatures(self, signed: Signed, job_id: UUID, options: Options) -> list[str]:
        """The signature with each key of SECRETS_KEY, that with the first one first."""
        secret = await self._keys.link_secret()
        # Stored keys never change; links that were made with GATEWAY_API_KEY end when it does.
        own = self._keys.own_sha256 if signed.key_id == GATEWAY_KEY else None
        message = json.dumps([str(signed), own, str(job_id), sorted(options)]).encode()
        combined = (f"stenopool links {key}".encode() for key in self._combined_with)
        return [digest(digest(secret, each, sha256), message, sha256).hex() for each in combined]
