"""The token service: scopes and credentials in, a signed token with what is really granted out.

    settings    what it is configured by
    keys        private keys out of a directory, read again when they change; the JWKS
    identity    who asks (Authenticator)
    htpasswd    users of a file
    rights      what a subject may do (Authorizer)
    rules       rights out of a file
    reviews     tokens and rights as the cluster knows them
    watched     a file that is read again when it changes
    tokens      the token itself
    requests    a token request, read (pure)
    app         all of it together

It alone holds the private key. Who asks and what he may do are two interfaces, so that nothing else changes with a further source of
either. Tokens name what they are for by uuid, so that they do not outlive it.
"""

from __future__ import annotations
