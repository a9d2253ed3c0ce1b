"""Opens the storage that the settings choose."""

from __future__ import annotations

from common.settings import StorageSettings
from common.storage.local import LocalStorage
from common.storage.storage import Storage


def open_storage(settings: StorageSettings) -> Storage:
    """The storage, prepared. An unavailable S3 server is noticed only when it is used.

    Raises:
        SetupProblem: a setting is missing.
        StorageFull, Unavailable: it cannot be prepared.
    """
    storage: Storage
    if settings.storage_backend == "s3":
        from common.storage.s3 import S3Storage

        storage = S3Storage(settings)
    else:
        storage = LocalStorage(settings.uploads, settings.temp, settings.results, settings.access)
    storage.prepare()
    return storage
