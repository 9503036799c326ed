"""What the registry is configured by, besides DatabaseSettings, S3Settings and WebSettings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from entrepot.oci.hosts import UrlInvalid, origin
from entrepot.settings import SettingInvalid, Settings

__all__ = ["ALGORITHMS", "RegistrySettings"]

ALGORITHMS = frozenset({"ES256", "RS256", "PS256"})
"""Signatures a token may have; never a symmetric one, for which the public key would be the secret."""

_LONGEST_LINK = timedelta(minutes=20)


@dataclass(frozen=True, kw_only=True)
class RegistrySettings(Settings):
    """The registry's own settings."""

    port: int = 5000
    """Where the registry API is served."""

    metrics_port: int = 9090
    """Where /metrics, /healthz and /readyz are served."""

    log_level: str = "info"
    """debug, info, warning or error."""

    token_url: str = "http://entrepot-token:5001"  # noqa: S105 - an address, not a secret
    """The token service, as reached from here."""

    token_algorithms: tuple[str, ...] = ("ES256",)
    """Signatures that are accepted: ES256, RS256, PS256."""

    external_urls: tuple[str, ...] = ("http://localhost:30500",)
    """The addresses clients use, without a path; the first is the default."""

    service_id: str = "entrepot"
    """`service` and audience of tokens; the same in the token service."""

    pull_grace: timedelta = timedelta(minutes=10)
    """How long content that left the latest version is still served by digest, for pulls under way."""

    manifest_cache: int = 64 * 1024 * 1024
    """Bytes of manifests kept in memory, by digest."""

    token_cache: int = 10_000
    """Verified tokens kept in memory until they expire."""

    login_cache: int = 10_000
    """Tokens kept in memory that passwords sent with requests were exchanged for, until they expire."""

    insecure_login: bool = False
    """Whether passwords are taken over plain HTTP from other hosts than the client's own."""

    clock_skew: timedelta = timedelta(seconds=10)
    """How far the token service's clock may be ahead of ours."""

    keys_interval: timedelta = timedelta(minutes=5)
    """How often the token service's public keys are read again."""

    keys_retry: timedelta = timedelta(seconds=10)
    """How soon they may be read again because of a token whose key is not known."""

    keys_kept: timedelta = timedelta(minutes=5)
    """How long a key that is not published any more still verifies: as long as the token service's tokens live."""

    manifest_size: int = 4 * 1024 * 1024
    """Bytes of a pushed manifest at most; a larger one gets 413."""

    manifest_budget: int = 24 * 1024 * 1024
    """Bytes of manifests being pushed that are in memory at once; those of up to 64 KiB do not count, others wait."""

    manifest_timeout: timedelta = timedelta(minutes=1)
    """How long a client may take to send a manifest or a signature."""

    manifest_tags: int = 32
    """Tags that the push of one manifest may name (`?tag=`)."""

    sparse_indexes: bool = True
    """Whether an index may be pushed that lists manifests which are not in the repository."""

    gc_grace: timedelta = timedelta(hours=24)
    """How long content that nothing refers to is kept after a client was told of it; answers to HEAD count when a quarter of it has passed."""

    commit_timeout: timedelta = timedelta(seconds=20)
    """How long a new version may take to be written, other writers of the repository included, before the client is told to try again."""

    referrers_page: int = 1000
    """Referrers listed on a page at most."""

    referrers_size: int = 2 * 1024 * 1024
    """Bytes of manifests whose descriptors stand on a page of referrers; a larger one has a page of its own."""

    signature_size: int = 256 * 1024
    """Bytes of a pushed signature at most; a larger one gets 413."""

    signatures_maximum: int = 32
    """Signatures that a manifest may have in a repository."""

    catalog_default: int = 1000
    """Names that the catalog lists where the client does not say how many."""

    catalog_maximum: int = 10_000
    """Names that the catalog lists at most, whatever the client says."""

    warning: str = ""
    """Text that clients are shown as a warning with every manifest: printable ASCII, at most 2000 characters."""

    redirect: bool = False
    """Whether blobs in S3 are answered with a redirect to a link there; a Distribution's spec.redirect decides for itself."""

    redirect_ttl: timedelta = timedelta(minutes=5)
    """How long such a link is good; at most 20m, since whoever gets hold of it may read the blob."""

    max_blob_size: int = 100 * 1024 * 1024 * 1024
    """Bytes of a blob at most; a larger one gets 413."""

    max_uploads: int = 64
    """Requests at a time that bring bytes of blobs; one more gets 429 with Retry-After."""

    max_uploads_per_subject: int = 0
    """How many of them may be of one subject, of all anonymous clients together as well; 0: half of them."""

    upload_timeout: timedelta = timedelta(minutes=1)
    """How long a client may send no byte of a blob before it is dropped."""

    upload_pace: int = 64 * 1024
    """Bytes of a blob that a client must send in that time at least, or it is dropped as well."""

    upload_lease: timedelta = timedelta(seconds=30)
    """How soon an upload can go on whose process was killed while it wrote."""

    upload_keys: int = 64
    """Object keys that are reserved with one statement."""

    upload_hashes: int = 1000
    """Uploads whose hashes are kept in memory between two requests; others are read again at their end."""

    tags_default: int = 1000
    """Tags listed where the client does not say how many."""

    tags_maximum: int = 10_000
    """Tags listed at most, whatever the client says."""

    browse_default: int = 100
    """Entries of the content API's pages where the client does not say how many."""

    browse_maximum: int = 1000
    """Entries of the content API's pages at most, whatever the client says."""

    browse_filters: int = 100
    """Values that a filter of the content API takes at most."""

    browse_connections: int = 2
    """Connections to PostgreSQL that the content API uses at a time; further requests wait."""

    browse_timeout: timedelta = timedelta(seconds=20)
    """How long a request to the content API may wait and take before the client is told to try again."""

    lookup_connections: int = 2
    """Connections to PostgreSQL that look up manifests, and as many that look up blobs; requests that come meanwhile share the next
    statement."""

    lookup_batch: int = 256
    """Requests that share a statement at most."""

    lookup_timeout: timedelta = timedelta(seconds=5)
    """How long a lookup may take before the client is told to try again."""

    storage_timeout: timedelta = timedelta(seconds=30)
    """How long S3 may take until the first byte."""

    workers: int = 1
    """Processes that answer requests, on one port. All limits of memory, connections and rates are each process's own."""

    request_rate: float = 0.0
    """Requests a second, in the long run, of one subject, or, behind a trusted proxy, of one client address for those without one; 0: any number."""

    request_burst: int = 200
    """Requests that one subject or address may make at once before the rate holds."""

    rate_table: int = 20_000
    """Subjects and addresses that are counted; the one that was seen longest ago makes room."""

    @property
    def uploads_per_subject(self) -> int:
        """Requests of one subject at a time that bring bytes of blobs."""
        return self.max_uploads_per_subject or (self.max_uploads + 1) // 2

    def __post_init__(self) -> None:
        if not 0 <= self.request_rate < math.inf:
            raise SettingInvalid(f"{self.prefix}REQUEST_RATE must be 0 or more, not {self.request_rate:g}")
        unknown = sorted(set(self.token_algorithms) - ALGORITHMS)
        if unknown or not self.token_algorithms:
            raise SettingInvalid(
                f"{self.prefix}TOKEN_ALGORITHMS takes {', '.join(sorted(ALGORITHMS))}, not {', '.join(unknown) or 'nothing'}"
            )
        self._check_urls("EXTERNAL_URLS", *self.external_urls)
        self._check_urls("TOKEN_URL", self.token_url)
        if len(self.warning) > 2000 or not (self.warning.isascii() and self.warning.isprintable()):
            raise SettingInvalid(f"{self.prefix}WARNING takes up to 2000 characters of printable ASCII")
        if not timedelta() < self.redirect_ttl <= _LONGEST_LINK:
            raise SettingInvalid(f"{self.prefix}REDIRECT_TTL must be more than 0 and at most 20m")
        if not self.external_urls:
            raise SettingInvalid(f"{self.prefix}EXTERNAL_URLS needs at least one address")
        for name in (
            "workers", "request_burst", "rate_table", "lookup_connections", "lookup_batch", "tags_default", "tags_maximum", "token_cache",
            "login_cache", "manifest_size", "manifest_budget", "manifest_tags", "referrers_page", "referrers_size", "signature_size",
            "signatures_maximum", "catalog_default", "catalog_maximum", "max_blob_size", "max_uploads", "upload_keys", "upload_hashes",
            "browse_default", "browse_maximum", "browse_filters", "browse_connections", "max_uploads_per_subject",
        ):  # fmt: skip
            least = 0 if name == "max_uploads_per_subject" else 1
            if getattr(self, name) < least:
                raise SettingInvalid(f"{self.prefix}{name.upper()} must be at least {least}")

    def _check_urls(self, variable: str, *urls: str) -> None:
        for url in urls:
            try:
                if url.rstrip("/").lower() != str(origin(url)) and url.count("/") > 2 + url.endswith("/"):
                    raise SettingInvalid(f"{self.prefix}{variable} takes addresses without a path, not {url!r}")
            except UrlInvalid as error:
                raise SettingInvalid(f"{self.prefix}{variable}: {error}") from error
