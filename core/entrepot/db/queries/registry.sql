-- What the registry asks. Each statement answers many requests at once and begins at the place that a name stands for, so that its place, its access
-- and what it serves are read in one snapshot. A row comes back for every request, also where nothing was found.

-- name: find_manifests
-- Manifests by tag or digest. By digest also what left the latest version less than the grace ago by anything but an explicit delete:
-- the last range of a manifest is the one that counts, since an earlier one may have ended otherwise. Stale is as of blobs, below.
select q.position, d.uuid as place, d.access, m.digest, m.media_type, m.size, case when q.with_body then m.body end as body,
    m.touched_at < now() - :fresh::interval as is_stale
from unnest(:names::text[], :tags::text[], :digests::text[], :with_bodies::boolean[]) with ordinality
    as q (name, tag, digest, with_body, position)
left join place_of(q.name) d on true
left join lateral (
    select t.manifest from tag t
    where d.pinned is null and t.repository = d.repository and t.name = q.tag and t.removed is null
    union all
    select t.manifest from tag t
    where t.repository = d.repository and t.name = q.tag and t.added <= d.pinned and (t.removed is null or t.removed > d.pinned)
    union all
    select c.id
    from manifest c
    cross join lateral (
        select x.removed from repository_manifest x
        where x.manifest = c.id and x.repository = d.repository and (d.pinned is null or x.added <= d.pinned)
        order by x.added desc
        limit 1
    ) last
    where c.digest = q.digest
        and (
            last.removed is null
            or last.removed > d.pinned
            or (
                d.pinned is null
                and exists (
                    select from version v
                    where v.repository = d.repository and v.number = last.removed and not v.withdrawn and v.created_at > now() - :grace::interval
                )
            )
        )
) found on true
left join manifest m on m.id = found.manifest;

-- name: manifest_bodies
-- The bytes of manifests that were found before: a digest's bytes never change.
select q.position, m.body
from unnest(:digests::text[]) with ordinality as q (digest, position)
join manifest m on m.digest = q.digest;

-- name: find_blobs
-- Blobs by digest. Following latest: not hidden, and named by a manifest of the latest version, or never named here (an upload in
-- progress), or gone from the latest less than the grace ago other than by explicit delete. Pinned: only if a manifest of that version
-- names it. Either way it must be linked here: a manifest may name foreign layers that are not, and naming a digest gives access to nothing.
-- Stale is what nobody was told of for so long that it is to be touched before somebody is.
select q.position, d.uuid as place, d.access, d.redirect, b.size, b.object_key, case when q.with_inline then b.inline end as inline,
    case when b.is_stale then b.id end as stale, d.repository
from unnest(:names::text[], :digests::text[], :with_inlines::boolean[]) with ordinality as q (name, digest, with_inline, position)
left join place_of(q.name) d on true
left join lateral (
    select c.*, l.touched_at < now() - :fresh::interval as is_stale
    from blob c
    join repository_blob l on l.blob = c.id and l.repository = d.repository
    where c.digest = q.digest
        and c.stored_at is not null
        and c.quarantined_at is null
        and case
            when d.pinned is null
                then not l.hidden and (l.in_latest > 0 or not l.named or l.left_at > now() - :grace::interval)
            else exists (
                select from manifest_blob e
                join repository_manifest x on x.manifest = e.manifest and x.repository = d.repository
                where e.blob = c.id and x.added <= d.pinned and (x.removed is null or x.removed > d.pinned)
            )
        end
) b on true;

-- name: list_tags
-- A page of tags in byte order; one row without a name where there is none.
select d.uuid as place, d.access, found.name
from (select) as request
left join place_of(:name) d on true
left join lateral (
    (
        select t.name from tag t
        where d.pinned is null and t.repository = d.repository and t.removed is null and t.name > :last
        order by t.name
        limit :count
    )
    union all
    (
        select t.name from tag t
        where t.repository = d.repository and t.added <= d.pinned and (t.removed is null or t.removed > d.pinned) and t.name > :last
        order by t.name
        limit :count
    )
) found on true
order by found.name;
