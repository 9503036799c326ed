"""What the web services have in common: how they listen, answer errors, log, count, say whether they are ready, and go away.

    settings   limits and times of the listener
    calls      one request: its id, its route, what became of it
    gate       around every handler: limits, errors in the specification's form, access log, metrics
    access_log one JSON line a request, written in batches
    metrics    the Prometheus metrics that every web service has
    readiness  named checks, asked at most every few seconds
    service    sockets, the port for metrics and probes, drain
    connection what a slow client cannot hold
    proxies    whose address a client's is
    limits     requests per subject or address
    traces     OpenTelemetry, by setting; spans is the part that needs its libraries
    timings    what PostgreSQL and S3 take, into metrics and traces
    workers    several processes behind one port

It sits on aiohttp's low-level server: the registry's paths hold names with slashes, which a router of decoded paths could confuse, and a
router and its middlewares cost more than the lookup they lead to.
"""

from __future__ import annotations
