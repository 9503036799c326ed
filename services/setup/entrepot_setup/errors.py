"""What stops a set-up. The message is what the person who installs reads: it says what is wrong and what to do."""

from __future__ import annotations

from entrepot.errors import Failed

__all__ = ["ApiFailed", "ReleaseRefused", "SetupFailed"]


class SetupFailed(Failed):
    """The set-up cannot go on; Kubernetes starts it again after a while."""

    default_reason = "SetupFailed"


class ReleaseRefused(SetupFailed):
    """Another release of Entrepot lives in this cluster."""


class ApiFailed(SetupFailed):
    """The Kubernetes API answered with an error; `status` is the HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
