"""The operator: makes what custom resources ask for true, and tells in their status how far it is.

    informer   what changed, from kopf's watches          ─┐
    comparison what the watches lost, by LIST              ├─> queue ─> controller ─> one reconciler a kind
    poller     what PostgreSQL knows that the API does not ─┘              │
                                                                           └─> conditions, status, events

It moves no image bytes and speaks to no registry: sync runs do, in Jobs of their own, and meet the operator in PostgreSQL.
"""

from __future__ import annotations
