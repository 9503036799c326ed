-- What the content API asks: one statement a request, which begins at the place that a name stands for and at the version that may be seen there
-- (seen_version). A row comes back also where nothing was found. A page begins behind `after`, which the page before it gave.

-- name: list_versions
-- Versions, newest first, and how many of what they hold.
select d.uuid as place, d.access, v.*
from (select) as request
left join place_of(:name) d on true
left join repository r on r.id = d.repository
left join lateral (
    select v.number, v.base, v.created_at, v.cause_kind, v.cause_name, v.is_step, v.added_tags, v.removed_tags, v.added_manifests,
        v.removed_manifests, v.added_blobs, v.removed_blobs, v.added_signatures, v.removed_signatures, v.tags, v.manifests, v.blobs,
        v.signatures, v.size
    from version v
    where v.repository = d.repository and (:after::bigint is null or v.number < :after)
        and (:history::boolean and d.pinned is null or v.number = coalesce(d.pinned, r.latest))
    order by v.number desc
    limit :count
) v on true
order by v.number desc;

-- name: find_version^
-- One version.
select s.place, s.access, v.number, v.base, v.created_at, v.cause_kind, v.cause_name, v.is_step, v.added_tags, v.removed_tags,
    v.added_manifests, v.removed_manifests, v.added_blobs, v.removed_blobs, v.added_signatures, v.removed_signatures, v.tags, v.manifests,
    v.blobs, v.signatures, v.size
from seen_version(:name, :history, :number, null) s
left join version v on v.repository = s.repository and v.number = s.number;

-- name: list_version_tags
-- Tags in byte order, with what they point at and since which version.
select s.place, s.access, s.sees_history, s.number, s.base, found.*
from seen_version(:name, :history, :number, :change) s
left join lateral (
    select t.name, t.added as since, m.digest, m.media_type, m.kind, m.size
    from tag t
    join manifest m on m.id = t.manifest
    where t.repository = s.repository
        and t.added <= s.at and (t.removed is null or t.removed > s.at)
        and not (t.added <= s.not_at and (t.removed is null or t.removed > s.not_at))
        and t.name > :after
        and (:names::text[] is null or t.name = any (:names))
        and (:digests::text[] is null or m.digest = any (:digests))
        and (:media_types::text[] is null or m.media_type = any (:media_types))
    order by t.name
    limit :count
) found on true
order by found.name;

-- name: list_version_manifests
-- Manifests, in the order in which they became known.
select s.place, s.access, s.sees_history, s.number, s.base, found.*
from seen_version(:name, :history, :number, :change) s
left join lateral (
    select x.manifest as position, x.added as since, m.digest, m.media_type, m.kind, m.size, m.artifact_type, m.subject, m.os,
        m.architecture, m.variant
    from repository_manifest x
    join manifest m on m.id = x.manifest
    where x.repository = s.repository
        and x.added <= s.at and (x.removed is null or x.removed > s.at)
        and not (x.added <= s.not_at and (x.removed is null or x.removed > s.not_at))
        and x.manifest > :after
        and (:digests::text[] is null or m.digest = any (:digests))
        and (:media_types::text[] is null or m.media_type = any (:media_types))
    order by x.manifest
    limit :count
) found on true
order by found.position;

-- name: list_version_blobs
-- Blobs that manifests name, in the order in which they became known, with a type that one of these manifests gives them.
select s.place, s.access, s.sees_history, s.number, s.base, found.*
from seen_version(:name, :history, :number, :change) s
left join lateral (
    select l.blob as position, b.digest, l.size, named.media_type, named.role
    from repository_blob l
    join blob b on b.id = l.blob
    cross join lateral (
        select e.media_type, e.role
        from manifest_blob e
        join repository_manifest x on x.manifest = e.manifest and x.repository = l.repository
        where e.blob = l.blob
            and x.added <= s.at and (x.removed is null or x.removed > s.at)
            and (:media_types::text[] is null or e.media_type = any (:media_types))
        limit 1
    ) named
    where l.repository = s.repository
        and l.blob > :after
        and (:digests::text[] is null or b.digest = any (:digests))
    order by l.blob
    limit :count
) found on true
order by found.position;

-- name: list_changed_blobs
-- As list_version_blobs: blobs that manifests of one version name and none of the other.
with s as materialized (
    select * from seen_version(:name, :history, :number, :change)
), named as materialized (
    select e.blob, min(e.media_type) as media_type, min(e.role) as role
    from s
    join repository_manifest x on x.repository = s.repository
    join manifest_blob e on e.manifest = x.manifest
    where x.added <= s.at and (x.removed is null or x.removed > s.at)
        and not (x.added <= s.not_at and (x.removed is null or x.removed > s.not_at))
        and e.blob > :after
        and (:media_types::text[] is null or e.media_type = any (:media_types))
    group by e.blob
), others as materialized (
    select distinct e.blob
    from s
    join repository_manifest x on x.repository = s.repository
    join manifest_blob e on e.manifest = x.manifest
    where x.added <= s.not_at and (x.removed is null or x.removed > s.not_at) and exists (select from named)
)
select s.place, s.access, s.sees_history, s.number, s.base, found.*
from s
left join lateral (
    select l.blob as position, b.digest, l.size, n.media_type, n.role
    from named n
    join repository_blob l on l.repository = s.repository and l.blob = n.blob
    join blob b on b.id = n.blob
    where not exists (select from others o where o.blob = n.blob)
        and (:digests::text[] is null or b.digest = any (:digests))
    order by l.blob
    limit :count
) found on true
order by found.position;

-- name: list_version_signatures
-- Signatures, in the order in which they became known; digests are those of what is signed.
select s.place, s.access, s.sees_history, s.number, s.base, found.*
from seen_version(:name, :history, :number, :change) s
left join lateral (
    select x.signature as position, x.added as since, g.digest, g.manifest, g.name, octet_length(g.content) as size
    from repository_signature x
    join signature g on g.id = x.signature
    where x.repository = s.repository
        and x.added <= s.at and (x.removed is null or x.removed > s.at)
        and not (x.added <= s.not_at and (x.removed is null or x.removed > s.not_at))
        and x.signature > :after
        and (:names::text[] is null or g.name = any (:names))
        and (:digests::text[] is null or g.manifest = any (:digests))
    order by x.signature
    limit :count
) found on true
order by found.position;

-- name: compare_versions
-- What is different in one version (b) from another (a): tags in byte order, and on the first page how many of what. Of tags and manifests only
-- ranges that begin or end between the two are looked at, whatever the versions hold. Blobs have no ranges: those of a whole version are read, since
-- to look at each blob's manifests would mean those of every repository. (offset 0: planned by itself, so that the ranges are found by index.)
with pair as materialized (
    select a.place, a.access, a.repository, a.number as a, b.number as b, least(a.number, b.number) as low,
        greatest(a.number, b.number) as high
    from seen_version(:name, :history, :a, null) a, seen_version(:name, :history, :b, null) b
), touched as materialized (
    select t.name, t.manifest, t.added <= p.a and (t.removed is null or t.removed > p.a) as in_a,
        t.added <= p.b and (t.removed is null or t.removed > p.b) as in_b
    from pair p
    cross join lateral (
        (
            select t.name, t.manifest, t.added, t.removed from tag t
            where t.repository = p.repository and t.added > p.low and t.added <= p.high
            offset 0
        )
        union all
        (
            select t.name, t.manifest, t.added, t.removed from tag t
            where t.repository = p.repository and t.removed > p.low and t.removed <= p.high
            offset 0
        )
    ) t
), change as materialized (
    select coalesce(o.name, n.name) as name, o.manifest as old, n.manifest as new
    from (select name, manifest from touched where in_a) o
    full join (select name, manifest from touched where in_b) n on n.name = o.name
    where o.manifest is distinct from n.manifest
), touched_manifest as materialized (
    select x.manifest, bool_or(x.added <= p.a and (x.removed is null or x.removed > p.a)) as in_a,
        bool_or(x.added <= p.b and (x.removed is null or x.removed > p.b)) as in_b
    from pair p
    cross join lateral (
        (
            select x.manifest, x.added, x.removed from repository_manifest x
            where x.repository = p.repository and x.added > p.low and x.added <= p.high
            offset 0
        )
        union all
        (
            select x.manifest, x.added, x.removed from repository_manifest x
            where x.repository = p.repository and x.removed > p.low and x.removed <= p.high
            offset 0
        )
    ) x
    where :after = ''
    group by x.manifest
), changed_manifest as materialized (
    select t.manifest, t.in_b as is_new, m.size from touched_manifest t join manifest m on m.id = t.manifest where t.in_a <> t.in_b
), named as materialized (
    select distinct e.blob, c.is_new from changed_manifest c join manifest_blob e on e.manifest = c.manifest
), blob_of_a as materialized (
    select distinct e.blob
    from pair p
    join repository_manifest x on x.repository = p.repository and x.added <= p.a and (x.removed is null or x.removed > p.a)
    join manifest_blob e on e.manifest = x.manifest
    where exists (select from named where is_new)
), blob_of_b as materialized (
    select distinct e.blob
    from pair p
    join repository_manifest x on x.repository = p.repository and x.added <= p.b and (x.removed is null or x.removed > p.b)
    join manifest_blob e on e.manifest = x.manifest
    where exists (select from named where not is_new)
), changed_blob as materialized (
    select n.is_new, l.size
    from pair p
    cross join (
        select n.blob, n.is_new from named n where n.is_new and not exists (select from blob_of_a a where a.blob = n.blob)
        union all
        select n.blob, n.is_new from named n where not n.is_new and not exists (select from blob_of_b b where b.blob = n.blob)
    ) n
    join repository_blob l on l.repository = p.repository and l.blob = n.blob
)
select p.place, p.access, p.a, p.b, tags.*, manifests.*, blobs.*, found.*
from pair p
cross join (
    select count(*) filter (where old is null) as tags_added, count(*) filter (where new is null) as tags_removed,
        count(*) filter (where old is not null and new is not null) as tags_moved
    from change
) tags
cross join (
    select count(*) filter (where is_new) as manifests_added, coalesce(sum(size) filter (where is_new), 0)::bigint as manifests_added_size,
        count(*) filter (where not is_new) as manifests_removed,
        coalesce(sum(size) filter (where not is_new), 0)::bigint as manifests_removed_size
    from changed_manifest
) manifests
cross join (
    select count(*) filter (where is_new) as blobs_added, coalesce(sum(size) filter (where is_new), 0)::bigint as blobs_added_size,
        count(*) filter (where not is_new) as blobs_removed,
        coalesce(sum(size) filter (where not is_new), 0)::bigint as blobs_removed_size
    from changed_blob
) blobs
left join lateral (
    select page.name, o.digest as old_digest, image_size(p.repository, page.old) as old_size, n.digest as new_digest,
        image_size(p.repository, page.new) as new_size
    from (select * from change where change.name > :after order by change.name limit :count) page
    left join manifest o on o.id = page.old
    left join manifest n on n.id = page.new
) found on true
order by found.name;

-- name: list_runs
-- Sync runs, newest first. At a pinned place only those that made what is served there.
select d.uuid as place, d.access, found.*
from (select) as request
left join place_of(:name) d on true
left join lateral (
    select r.id, r.trigger, r.created_at, r.started_at, r.finished_at, r.attempts, r.phase, r.outcome, r.reason, r.message, r.version,
        r.added, r.removed, r.bytes_transferred, r.failed_tags, r.failed_tag_count
    from sync_run r
    where r.repository = d.repository and (d.pinned is null or r.version = d.pinned)
        and (
            :after::uuid is null
            or (r.created_at, r.id) < (select o.created_at, o.id from sync_run o where o.id = :after and o.repository = d.repository)
        )
    order by r.created_at desc, r.id desc
    limit :count
) found on true
order by found.created_at desc, found.id desc;
