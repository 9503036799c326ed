"""A client of other people's registries, written on the assumption that they are broken or hostile.

`addresses` decides where connections may go, `auth` to whom passwords and tokens may go, `transport` sends one request and says what its
failure means, `client` speaks the registry protocol and verifies whatever it hands out. What an upstream says in a body never reaches a
message, a log or a status: its HTTP status and error code do.
"""

from __future__ import annotations
