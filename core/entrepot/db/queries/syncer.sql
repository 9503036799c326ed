-- name: claim_run^
-- Begins an attempt at a run; gives nothing if it is finished or unknown. The advisory lock on the run is held by now.
update sync_run r set
    attempts = r.attempts + 1,
    started_at = coalesce(r.started_at, now()),
    heartbeat_at = now(),
    phase = 'Listing',
    failed_tags = '[]', failed_tag_count = 0,
    tags_done = 0, tags_total = 0, manifests_done = 0, manifests_total = 0,
    blobs_done = 0, blobs_total = 0, bytes_done = 0, bytes_total = 0
from repository p
where r.id = :run and r.finished_at is null and p.id = r.repository
returning r.repository, r.spec, r.spec_hash, r.attempts, r.bytes_transferred, p.namespace, p.name, p.deleted_at is not null as is_deleted;

-- name: run_state^
-- Whether a run is known and finished.
select finished_at is not null as is_finished from sync_run where id = :run;

-- name: try_lock_run$
-- A lock of this connection's session: one process works on a run.
select pg_try_advisory_lock(hashtextextended('entrepot/sync/' || :run::text, 0));

-- name: report_progress$
-- What a run has done so far; also its sign of life. Tells whether the run is finished. While the run's own commit holds its row nothing is
-- written: waiting for that would look as if PostgreSQL were away.
with free as (
    select id from sync_run where id = :run and finished_at is null for update skip locked
),
told as (
    update sync_run set
        heartbeat_at = now(), phase = :phase,
        tags_done = :tags_done, tags_total = :tags_total,
        manifests_done = :manifests_done, manifests_total = :manifests_total,
        blobs_done = :blobs_done, blobs_total = :blobs_total,
        bytes_done = :bytes_done, bytes_total = :bytes_total,
        bytes_transferred = :bytes_transferred
    from free
    where sync_run.id = free.id
)
select finished_at is not null from sync_run where id = :run;

-- name: lock_run$
-- Whether a run is finished; nobody finishes it before the end of this transaction.
select finished_at is not null from sync_run where id = :run for update;

-- name: run_is_applied$
-- Whether a run's change was made. A statement of its own: it must see what was committed while the run's row was waited for.
select exists (
    select from ledger l join sync_run r on r.repository = l.repository and r.spec_hash = l.hash
    where r.id = :run and l.kind = 'SyncRun' and l.name = r.id::text
);

-- name: finish_run$
-- Ends a run, once: a second call changes nothing and gives nothing.
update sync_run set
    finished_at = now(), heartbeat_at = now(), phase = 'Finished',
    outcome = :outcome, reason = :reason, message = :message, version = :version,
    added = :added, removed = :removed,
    failed_tags = :failed_tags, failed_tag_count = :failed_tag_count,
    tags_done = :tags_done, tags_total = :tags_total,
    manifests_done = :manifests_done, manifests_total = :manifests_total,
    blobs_done = :blobs_done, blobs_total = :blobs_total,
    bytes_done = :bytes_done, bytes_total = :bytes_total,
    bytes_transferred = :bytes_transferred
where id = :run and finished_at is null
returning id;

-- name: record_contact!
-- How the upstream answered, for the Remote's status.
update remote set contact_at = now(), contact_outcome = :outcome, contact_message = :message where uuid = :remote;

-- name: credential^
-- The sealed credentials of a remote.
select key_id, ciphertext from remote_credential where remote = :remote;

-- name: open_uploads
-- Multipart uploads that an attempt at this run left open.
select key, upload_id from object where owner = :owner and upload_id is not null;

-- name: discard_leftovers!
-- Objects that earlier attempts at this run began and nothing points at: the keeper removes them.
update object set upload_id = null, delete_after = now() where owner = :owner and delete_after is null;

-- name: abandon_objects!
-- Objects that a run which failed began and nothing points at: the keeper removes them, and aborts what is still being uploaded.
update object set delete_after = now() where owner = :owner and delete_after is null;

-- name: stored_configs
-- Blobs that are kept, with their bytes or where these are.
select digest, inline, object_key from blob where digest = any (:digests::text[]) and stored_at is not null;
