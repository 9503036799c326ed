"""S3: the bytes of blobs, under random keys that PostgreSQL knows.

Nothing here knows digests, repositories or rights: `store` puts, streams and removes objects, `upload` writes large ones
in parts, `budget` bounds the memory that this takes.
"""

from __future__ import annotations
