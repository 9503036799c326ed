-- migrate:up
-- Each role has what its part does today, and no more.

-- Every part asks whether the schema is new enough before it is ready.
grant select on schema_migrations to entrepot_operator, entrepot_registry, entrepot_token, entrepot_syncer, entrepot_keeper;

grant select, insert on repository to entrepot_operator;
grant update (last_number, projected, namespace, name, resource_uid, deleted_at, purge_after) on repository to entrepot_operator;
grant select on version, ledger to entrepot_operator;
grant select, insert, delete on distribution, base_path_claim to entrepot_operator;
grant update on distribution, base_path_claim to entrepot_operator;
grant select, insert, delete on remote to entrepot_operator;
grant update (namespace, name, url) on remote to entrepot_operator;
-- It writes the ciphertext and cannot read it back: "on conflict do update" needs select on the key column only.
grant insert, delete on remote_credential to entrepot_operator;
grant update (key_id, ciphertext, updated_at) on remote_credential to entrepot_operator;
grant select (remote, key_id, updated_at) on remote_credential to entrepot_operator;
grant select, insert, delete on sync_run to entrepot_operator;
grant update (finished_at, phase, outcome, reason, message) on sync_run to entrepot_operator;

grant select on repository, version, distribution, blob, manifest, manifest_child, manifest_blob, tag, repository_manifest,
    repository_blob, signature, repository_signature to entrepot_registry;

grant select on distribution, repository to entrepot_token;

grant select on repository, version, tag, repository_manifest, repository_blob, blob, blob_origin, object, manifest, manifest_child,
    manifest_blob, sync_run, remote, remote_credential, ledger to entrepot_syncer;
grant insert on manifest, manifest_child, manifest_blob, blob, blob_origin, object, repository_blob to entrepot_syncer;
grant update (size, object_key, inline, stored_at, touched_at, quarantined_at) on blob to entrepot_syncer;
grant update (touched_at) on manifest to entrepot_syncer;
grant update (seen_at) on blob_origin to entrepot_syncer;
grant update (upload_id, delete_after) on object to entrepot_syncer;
grant delete on object to entrepot_syncer;
grant update (touched_at, size) on repository_blob to entrepot_syncer;
grant update (contact_at, contact_outcome, contact_message) on remote to entrepot_syncer;
grant update (
    started_at, heartbeat_at, finished_at, attempts, phase, outcome, reason, message, version, added, removed, bytes_transferred,
    failed_tags, failed_tag_count, tags_done, tags_total, manifests_done, manifests_total, blobs_done, blobs_total, bytes_done,
    bytes_total
) on sync_run to entrepot_syncer;
grant execute on function commit_content to entrepot_syncer;

-- migrate:down
revoke all on all tables in schema public from entrepot_operator, entrepot_registry, entrepot_token, entrepot_syncer, entrepot_keeper;
revoke all on function commit_content from entrepot_syncer;
