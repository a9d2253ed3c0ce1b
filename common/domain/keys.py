"""API keys: their text, scopes and limits."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

DEFAULT_TENANT = "default"
TENANT_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"

ID_LENGTH = 12
ID_PATTERN = rf"^[a-z0-9]{{{ID_LENGTH}}}$"
SECRET_BYTES = 32

_ALPHABET = string.ascii_lowercase + string.digits
_KEY = re.compile(rf"steno_([a-z0-9]{{{ID_LENGTH}}})_([A-Za-z0-9_-]{{43}})")


class Scope(StrEnum):
    """What a key permits; `ADMIN` permits everything, in every tenant."""

    TRANSCRIBE = "transcribe"
    READ = "read"
    ADMIN = "admin"


def is_tenant(name: str) -> bool:
    """Whether this is a valid name of a tenant."""
    return re.fullmatch(TENANT_PATTERN, name) is not None


@dataclass(frozen=True, slots=True)
class KeyText:
    """The text of a key: a public ``id`` and a secret of 256 random bits."""

    id: str
    secret: str = field(repr=False)

    @classmethod
    def make(cls) -> Self:
        """Create a key."""
        name = "".join(secrets.choice(_ALPHABET) for _ in range(ID_LENGTH))
        return cls(name, secrets.token_urlsafe(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse ``text``; None: it is not a key of this service."""
        found = _KEY.fullmatch(text)
        return cls(*found.groups()) if found else None

    def reveal(self) -> str:
        """The full text. Show it once and store it nowhere."""
        return f"steno_{self.id}_{self.secret}"

    @property
    def sha256(self) -> str:
        """The hash of the secret, lower-case hex; for 256 random bits a slow hash adds nothing."""
        return sha256_of(self.secret)


def sha256_of(text: str) -> str:
    """The SHA-256 of a text, lower-case hex."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a key; 0: no limit."""

    requests_per_second: int = 0
    requests_per_minute: int = 0
    concurrent_jobs: int = 0
    concurrent_streams: int = 0
    audio_hours_per_day: float = 0

    def but(self, overrides: Mapping[str, float]) -> Limits:
        """These limits with ``overrides``, by the names of the fields."""
        if not overrides:
            return self
        known: dict[str, Any] = {name: overrides[name] for name in LIMIT_NAMES if name in overrides}
        return replace(self, **known)

    def to_json(self) -> dict[str, float]:
        return asdict(self)


NO_LIMITS = Limits()
LIMIT_NAMES = tuple(each.name for each in fields(Limits))
