"""The library that every part of Entrepot stands on.

`oci` and `content` are pure: grammar, manifests, filters, the algebra of versions. `db`, `blobs` and `upstream` do the I/O: the content
model in PostgreSQL, the bytes in S3, the registries that are mirrored. Nothing here imports from a part above.
"""

from __future__ import annotations

__version__ = "0.1.0"
