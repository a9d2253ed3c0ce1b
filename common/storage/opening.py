"""Which storage the settings choose."""

from __future__ import annotations

from common.settings import StorageSettings
from common.storage.local import LocalStorage
from common.storage.storage import Storage


def open_storage(settings: StorageSettings) -> Storage:
    """The storage, made ready.

    Raises:
        StorageFull, Unavailable: it cannot be.
    """
    storage = LocalStorage(settings.uploads, settings.temp, settings.results)
    storage.prepare()
    return storage
