"""The keeper: what nobody waits for. It ends abandoned uploads and removes objects that nothing points at.

    settings    what it is configured by
    metrics     what it counts
    rounds      one round of its work, and each step of it
    keeper      round after round, as the only one who works
    operations  the port for metrics and probes
    app         all of it together

It decides in PostgreSQL and acts in S3. Every step can be cut off at any point: what was marked stays marked, and what was removed already
counts as removed.
"""

from __future__ import annotations
