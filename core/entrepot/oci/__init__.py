"""The OCI registry protocol as pure functions over plain values.

Registry, token service, syncer and operator read and write the same names, digests, manifests and headers. They
share this package so that a string from the network is judged by one grammar, in one place, and so that this grammar
can be tested with arbitrary input, without a network. Nothing here opens, waits, logs or remembers.

How it is laid out (each module quotes the rule it implements, with its source)::

    errors       the codes of the specification, error bodies, and GrammarError, the root of all errors below
    digest       Digest, Hasher
    reference    repository names, tags, and whole image references
    media_types  the constants, and Content-Type
    manifest     bytes -> Manifest: image manifests and indexes, what they are, what they name
    ranges       Range and Content-Range, for blobs and for uploads
    challenge    WWW-Authenticate, read and written
    scope        what a token is asked for
    link         Link, for pages
    paging       n and last
    scanner      the cursor that challenge and link read with
    hosts        Docker Hub's names, origins, the credentials that belong to a host

Two habits hold throughout. Input is bounded before it is looked at, and a regular expression is only ever applied to
the whole of a value (`fullmatch`), or, in the three header scanners, at a position that only moves forward.
"""
