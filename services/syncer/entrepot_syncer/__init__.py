"""The syncer: one process mirrors one repository once, from its tag list to one new version.

settings, spec     what it is told: by the environment, and by the run's row
lease, patience    it alone works on the run; PostgreSQL and S3 may be away for a while
selection          which tags are wanted, and what they point at upstream
manifests, blobs   what is not here yet is fetched, verified and stored, many at a time
batches, store     many small writes become few statements
run, outcome       the order of all this, the commit, and what is written about it
"""

from __future__ import annotations
