-- name: commit_content^
-- The one way to a new version; see migrations, commit_content.
select outcome, number, added_tags, removed_tags from commit_content(
    :repository, :cause_kind, :cause_name, :tag_names, :tag_manifests, :untag, :manifests_add, :manifests_remove, :signatures_add,
    :signatures_remove, :ledger_kind, :ledger_name, :ledger_hash, :base, :is_step, :withdrawn
);

-- name: insert_blobs!
-- Rows for digests that are named for the first time; known ones stay as they are.
insert into blob (digest) select digest from unnest(:digests::text[]) as digest order by digest collate "C" on conflict (digest) do nothing;

-- name: insert_manifests
-- Manifests as received; a digest that is known keeps its first media type.
insert into manifest (digest, media_type, kind, artifact_type, subject, os, architecture, variant, annotations, labels, size, body)
select * from unnest(
    :digests::text[], :media_types::text[], :kinds::text[], :artifact_types::text[], :subjects::text[], :systems::text[],
    :architectures::text[], :variants::text[], :annotations::jsonb[], :labels::jsonb[], :sizes::bigint[], :bodies::bytea[]
)
on conflict (digest) do nothing
returning id, digest;

-- name: insert_manifest_blobs!
-- Edges of manifests that were inserted just now. A blob without a row is an error (blob is not null), not an edge less.
insert into manifest_blob (manifest, position, blob, role, media_type, size, is_foreign)
select e.manifest, e.position, b.id, e.role, e.media_type, e.size, e.is_foreign
from unnest(
    :manifests::bigint[], :positions::int[], :digests::text[], :roles::text[], :media_types::text[], :sizes::bigint[], :foreigns::boolean[]
) as e (manifest, position, digest, role, media_type, size, is_foreign)
left join blob b on b.digest = e.digest
order by b.id, e.manifest, e.position;

-- name: insert_manifest_children!
-- Edges of indexes that were inserted just now.
insert into manifest_child (parent, position, digest, os, architecture, variant)
select * from unnest(
    :parents::bigint[], :positions::int[], :digests::text[], :systems::text[], :architectures::text[], :variants::text[]
);

-- name: manifest_ids
-- The ids of manifests by digest.
select digest, id from manifest where digest = any (:digests::text[]);

-- name: latest_manifests
-- Which of these digests are manifests of the repository's latest version.
select m.digest, m.id
from manifest m
join repository_manifest r on r.manifest = m.id
where m.digest = any (:digests::text[]) and r.repository = :repository and r.removed is null;

-- name: linkable_blobs
-- Which of these digests are stored and linked to a repository of the same namespace, so that linking them gives away nothing.
select b.digest, b.size
from blob b
where b.digest = any (:digests::text[])
    and b.stored_at is not null
    and b.quarantined_at is null
    and exists (
        select from repository_blob l
        join repository r on r.id = l.repository
        where l.blob = b.id
            and not l.hidden
            and r.deleted_at is null
            and r.namespace = (select namespace from repository where id = :repository)
    );

-- name: link_blobs!
-- Links blobs to a repository; a link that is there is touched. A blob without a row is an error.
insert into repository_blob (repository, blob, size)
select :repository, b.id, e.size
from unnest(:digests::text[], :sizes::bigint[]) as e (digest, size)
left join blob b on b.digest = e.digest
order by b.id
on conflict (repository, blob) do update set touched_at = now();

-- name: begin_objects!
-- Object keys, written before the first byte of any of them.
insert into object (key, owner) select key, :owner from unnest(:keys::text[]) as key;

-- name: open_multipart!
-- Remembers the multipart upload of an object, so that it can be aborted by whoever cleans up.
update object set upload_id = :upload_id where key = :key;

-- name: store_blobs
-- Points blobs at their verified bytes, in S3 (key) or inline. A digest that another writer stored first keeps that one's bytes, unless
-- those were found damaged since. In the order of digests, as everywhere, so that two writers wait for each other and never in a circle.
insert into blob (digest, size, object_key, inline, stored_at)
select digest, size, key, inline, now()
from unnest(:digests::text[], :sizes::bigint[], :keys::text[], :inlines::bytea[]) as e (digest, size, key, inline)
order by digest collate "C"
on conflict (digest) do update set
    size = excluded.size,
    object_key = case when blob.stored_at is null or blob.quarantined_at is not null then excluded.object_key else blob.object_key end,
    inline = case when blob.stored_at is null or blob.quarantined_at is not null then excluded.inline else blob.inline end,
    stored_at = case when blob.stored_at is null or blob.quarantined_at is not null then excluded.stored_at else blob.stored_at end,
    quarantined_at = null,
    touched_at = now()
returning digest, object_key;

-- name: close_objects!
-- Objects that a blob points at need no row of their own any more.
delete from object where key = any (:keys::text[]);

-- name: discard_objects!
-- Objects that nothing will point at: the keeper removes them.
update object set upload_id = null, delete_after = now() where key = any (:keys::text[]);

-- name: record_origins!
-- Remembers where bytes came from.
insert into blob_origin (blob, origin, name)
select b.id, :origin, :name from blob b where b.digest = any (:digests::text[])
on conflict (blob, origin, name) do update set seen_at = now();
