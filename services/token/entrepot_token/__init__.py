"""The token service: scopes and credentials in, a signed token with what is really granted out.

    settings    what it is configured by
    keys        private keys out of a directory, read again when they change; the JWKS
    identity    who asks (Authenticator)
    rights      what he may do (Authorizer)
    tokens      the token itself
    requests    a token request, read (pure)
    app         all of it together

It alone holds the private key. Who asks and what he may do are two interfaces; in this version the only subject is nobody, and he may pull
what is public. Tokens name distributions by uuid, so that they do not outlive what they were given for.
"""

from __future__ import annotations
