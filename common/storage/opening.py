"""Which storage the settings choose."""

from __future__ import annotations

from common.settings import StorageSettings
from common.storage.local import LocalStorage
from common.storage.storage import Storage


def open_storage(settings: StorageSettings) -> Storage:
    """The storage, made ready; a server that is out will be found out when it is asked.

    Raises:
        SetupProblem: the settings lack something.
        StorageFull, Unavailable: it cannot be made ready.
    """
    storage: Storage
    if settings.storage_backend == "s3":
        from common.storage.s3 import S3Storage

        storage = S3Storage(settings)
    else:
        storage = LocalStorage(settings.uploads, settings.temp, settings.results, settings.access)
    storage.prepare()
    return storage
