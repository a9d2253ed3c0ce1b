"""What is encrypted in Postgres if a key is set: secrets, and the embeddings of voices.

Secrets are those of webhooks, and the keys of tenants' language models. Signing and asking need
them, and comparing voices the embeddings, so hashes are not enough. With encryption a backup of the
database does not reveal them: the keys are not in it.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from common.db.database import Database
from common.db.tables import Tenant, WebhookEndpoint
from common.domain.webhooks import Secret, good
from common.errors import SecretsLocked, SetupProblem

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

SHORTEST = 32
"""The least number of characters of a key."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """What keys are for: the setting that has them, and what goes into their derivation."""

    setting: str
    derivation: bytes


SECRETS = Purpose("SECRETS_KEY", b"stenopool webhook secrets")
CHAT_KEYS = Purpose("SECRETS_KEY", b"stenopool keys of language models")
VOICES = Purpose("VOICE_KEY", b"stenopool embeddings of voices")


class Cipher:
    """Encrypts with the first of ``keys``, decrypts with any; without keys it does neither.

    Raises:
        SetupProblem: a key is too short.
    """

    def __init__(self, purpose: Purpose, keys: Sequence[str] = ()) -> None:
        if any(len(key) < SHORTEST for key in keys):
            raise SetupProblem(
                problem=f"{purpose.setting} has a key of fewer than {SHORTEST} characters",
                remedy="Make one with: openssl rand -hex 32",
            )
        self._purpose = purpose
        self._fernet = _fernet(purpose, keys) if keys else None

    @property
    def lack(self) -> str:
        """Why something cannot be decrypted."""
        what = "lacks the key that encrypted them" if self._fernet else "is not set"
        return f"{self._purpose.setting} {what}"

    def seal(self, text: str) -> dict[str, str] | str:
        """The stored form of a text: JSON; the text itself where there is no key."""
        token = self.encrypt(text)
        return text if token is None else {"encrypted": token}

    def open(self, stored: dict[str, str] | str) -> str | None:
        """The text of a stored form; None: it cannot be decrypted."""
        return stored if isinstance(stored, str) else self.decrypt(stored["encrypted"])

    def encrypt(self, text: str) -> str | None:
        """The encrypted text; None: there is no key."""
        return None if self._fernet is None else self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, token: str) -> str | None:
        """The text of an encrypted one; None: no key is that which encrypted it."""
        if self._fernet is None:
            return None
        from cryptography.fernet import InvalidToken

        try:
            return self._fernet.decrypt(token).decode()
        except InvalidToken:
            return None


class Vault:
    """The storage format of webhook secrets; ``keys`` as of `Cipher`.

    Raises:
        SetupProblem: a key is too short.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._cipher = Cipher(SECRETS, keys)

    def seal(self, secret: Secret) -> dict[str, Any]:
        """The stored form of a secret."""
        document = secret.to_json()
        token = self._cipher.encrypt(document["secret"])
        if token is not None:
            del document["secret"]
            document["encrypted"] = token
        return document

    def open(self, documents: Iterable[dict[str, Any]], now: datetime) -> list[Secret]:
        """The valid secrets among the stored ones, newest first.

        Raises:
            SecretsLocked: none of them can be decrypted.
        """
        opened = [self._opened(document) for document in documents]
        secrets = good([secret for secret in opened if secret is not None], now)
        if not secrets and None in opened:
            raise SecretsLocked
        return secrets

    def seal_again(self, documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """The secrets encrypted with the first key; None if one cannot be decrypted."""
        opened = [self._opened(document) for document in documents]
        secrets = [secret for secret in opened if secret is not None]
        return [self.seal(each) for each in secrets] if len(secrets) == len(opened) else None

    def _opened(self, document: dict[str, Any]) -> Secret | None:
        if "encrypted" not in document:
            return Secret.from_json(document)
        text = self._cipher.decrypt(document["encrypted"])
        if text is None:
            return None
        return Secret.from_json({"secret": text, "until": document["until"]})


def seal_all(database: Database, vault: Vault) -> tuple[int, int]:
    """Encrypt every secret again; returns how many holders succeeded, and how many failed."""
    done = locked = 0
    with database.transaction() as session:
        holders = [
            *session.scalars(select(Tenant).with_for_update(key_share=True)),
            *session.scalars(select(WebhookEndpoint).with_for_update(key_share=True)),
        ]
        for holder in holders:
            sealed = vault.seal_again(holder.secrets)
            if sealed is None:
                locked += 1
            elif sealed:
                holder.secrets = sealed
                done += 1
    return done, locked


def _fernet(purpose: Purpose, keys: Iterable[str]) -> MultiFernet:
    from cryptography.fernet import Fernet, MultiFernet
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    def derived(key: str) -> bytes:
        return HKDF(SHA256(), length=32, salt=None, info=purpose.derivation).derive(key.encode())

    return MultiFernet([Fernet(urlsafe_b64encode(derived(key))) for key in keys])
