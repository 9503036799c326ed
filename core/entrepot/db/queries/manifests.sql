-- What the registry asks about manifests besides serving them. Each statement begins at the place that a name stands for, and gives a row also
-- where nothing was found, so that rights and content are read in one snapshot.

-- name: find_pushes
-- Where pushes go, and the bytes of the image configs that they name, where these are kept here and served there.
select q.position, d.uuid, d.access, d.repository, d.namespace, d.pinned, d.is_mirror, config.inline as config
from unnest(:names::text[], :configs::text[]) with ordinality as q (name, config, position)
join place_of(q.name) d on true
left join lateral (
    select b.inline
    from blob b
    join repository_blob l on l.blob = b.id and l.repository = d.repository
    where b.digest = q.config and not l.hidden and b.quarantined_at is null
) config on true;

-- name: touch_manifests!
-- Puts off the collection of manifests that clients were told of.
update manifest set touched_at = now() where digest = any (:digests::text[]);

-- name: find_referrers
-- A page of what refers to a digest in the version that is served: manifests whose subject it is, and what old clients have listed in an index
-- that is tagged with the digest. In the order of digests, each once. Sizes are summed up so that no page is larger than a client bears: a
-- manifest's size bounds that of its annotations, and they are read only for the page.
select d.uuid as place, d.access, found.digest, found.media_type, found.size, found.artifact_type, found.annotations, found.listed
from (select) as request
left join place_of(:name) d on true
left join lateral (
    select page.digest, page.media_type, page.size, page.artifact_type, page.listed, m.annotations
    from (
        select listed.*, count(*) over () as listed,
            sum(listed.size) over (order by listed.digest rows between unbounded preceding and 1 preceding) as before
        from (
            select c.id, c.digest, c.media_type, c.size, coalesce(c.artifact_type, config.media_type) as artifact_type
            from (
                select m.id, m.digest, m.media_type, m.size, m.artifact_type from manifest m where m.subject = :digest
                union
                select m.id, m.digest, m.media_type, m.size, m.artifact_type
                from tag t
                join manifest i on i.id = t.manifest and i.kind = 'index'
                join manifest_child e on e.parent = i.id
                join manifest m on m.digest = e.digest and (m.subject is null or m.subject = :digest)
                where t.repository = d.repository and t.name = :tag
                    and case when d.pinned is null then t.removed is null else t.added <= d.pinned and (t.removed is null or t.removed > d.pinned) end
            ) c
            left join manifest_blob config on config.manifest = c.id and config.role = 'config'
            where c.digest > :last
                and exists (
                    select from repository_manifest r
                    where r.manifest = c.id and r.repository = d.repository
                        and case when d.pinned is null then r.removed is null else r.added <= d.pinned and (r.removed is null or r.removed > d.pinned) end
                )
                and (cardinality(:types::text[]) = 0 or coalesce(c.artifact_type, config.media_type) = any (:types))
            order by c.digest
            limit :count
        ) listed
    ) page
    join manifest m on m.id = page.id
    where page.before is null or page.before < :bytes
) found on true
order by found.digest;

-- name: find_signatures
-- The signatures of a manifest in the version that is served; those that left the latest less than the grace ago by anything but an explicit
-- delete as well, as their manifest is.
select d.uuid as place, d.access, found.name, found.content
from (select) as request
left join place_of(:name) d on true
left join lateral (
    select g.name, g.content
    from signature g
    cross join lateral (
        select s.removed from repository_signature s
        where s.signature = g.id and s.repository = d.repository and (d.pinned is null or s.added <= d.pinned)
        order by s.added desc
        limit 1
    ) last
    where g.manifest = :digest
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
    order by g.id
    limit :count
) found on true;

-- name: list_catalog
-- A page of the distributions that somebody may pull from, in byte order.
select d.base_path as name
from distribution d
join repository r on r.id = d.repository
where d.base_path > :last
    and r.deleted_at is null
    and (d.access = 'Public' or :identified and (d.access = 'Authenticated' or :all_namespaces or d.namespace = any (:namespaces::text[])))
order by d.base_path
limit :count;
