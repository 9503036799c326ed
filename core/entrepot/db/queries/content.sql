-- name: commit_content^
-- The one way to a new version; see migrations, commit_content.
select outcome, number, added_tags, removed_tags from commit_content(
    :repository, :cause_kind, :cause_name, :tag_names, :tag_manifests, :untag, :manifests_add, :manifests_remove, :signatures_add,
    :signatures_remove, :ledger_kind, :ledger_name, :ledger_hash, :base, :is_step, :withdrawn
);

-- name: store_manifests
-- Manifests as received, with their edges, and the ids of all of them; see migrations, store_manifests.
select digest, id from store_manifests(:manifests, :bodies, :blobs, :children);

-- name: push_manifest^
-- A push of one manifest; see migrations, push_manifest.
select missing, number from push_manifest(
    :repository, :cause, :tags, :blobs_needed, :manifests_needed, :manifest, :body, :blobs, :children
);

-- name: delete_manifest$
-- The version made by the deletion of a tag or a manifest; see migrations, delete_manifest.
select delete_manifest(:repository, :tag, :digest);

-- name: sign_manifest^
-- A signature for a manifest; see migrations, sign_manifest.
select outcome, number from sign_manifest(:repository, :manifest, :name, :digest, :content, :limit);

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
insert into repository_blob (repository, blob, size, in_latest, in_any, named, is_late)
select :repository, b.id, e.size, c.in_latest, c.in_any, c.in_latest > 0, c.in_latest > 0
from unnest(:digests::text[], :sizes::bigint[]) as e (digest, size)
left join blob b on b.digest = e.digest
cross join lateral foreign_names(:repository, b.id) c
order by b.id
on conflict (repository, blob) do update set touched_at = now();

-- name: begin_objects!
-- Object keys, written before the first byte of any of them.
insert into object (key, owner) select key, :owner from unnest(:keys::text[]) as key;

-- name: open_multipart!
-- Remembers the multipart upload of an object, so that it can be aborted by whoever cleans up.
update object set upload_id = :upload_id where key = :key;

-- name: usable_objects
-- Which of these objects a blob may point at: those on record that nobody has marked for removal, locked until the transaction ends, and those
-- that a blob points at already, since an answer may have been lost.
with ours as (
    select key from object where key = any (:keys::text[]) and delete_after is null order by key for update
)
select key from ours
union all
select object_key collate "C" from blob where object_key = any (:keys::text[]);

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
-- Objects that nothing will point at: the keeper removes them, when S3 has surely ended what it was told about them.
update object set delete_after = now() + interval '15 minutes' where key = any (:keys::text[]);

-- name: record_origins!
-- Remembers where bytes came from.
insert into blob_origin (blob, origin, name)
select b.id, :origin, :name from blob b where b.digest = any (:digests::text[])
on conflict (blob, origin, name) do update set seen_at = now();
