"""Where a store is read from: a folder, or an address on object storage. Imports no torch."""

from __future__ import annotations

from clmoe_cli.backbone.places import cache_folder
from store_schema import is_remote, mirrored


def local(store: str) -> str:
    """The folder to read a store from: its own, or of one at an address (``s3://…``) the one in the user's cache.

    Raises what :func:`store_schema.mirrored` raises.
    """
    return str(mirrored(store, cache_folder())) if is_remote(store) else store
