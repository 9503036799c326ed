"""The registry: the OCI distribution specification over PostgreSQL and S3.

    settings    what it is configured by
    routes      a request line -> which endpoint, which name, which reference (pure)
    conditions  Accept and If-None-Match (pure)
    origins     the addresses the registry is reached at, for challenges
    keys        the public keys of the token service
    access      tokens -> what they grant; challenges
    lookups     concurrent requests -> one statement
    manifests, blobs, tags
                the endpoints
    token_proxy `/token`, passed on to the token service
    app         all of it together

It holds no state that matters: what a tag points at, what a repository holds and who may read are asked of PostgreSQL at every request;
what is cached cannot change (the bytes of a digest) or ends by itself (a verified token).
"""

from __future__ import annotations
