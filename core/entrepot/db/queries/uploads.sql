-- What a push asks and writes. An upload is known only under its own repository and to its own subject: whoever comes to it otherwise finds nothing.

-- name: find_targets
-- What names stand for, and whether they take a write.
select q.position, d.uuid, d.access, d.repository, d.namespace, d.pinned, d.is_mirror
from unnest(:names::text[]) with ordinality as q (name, position)
join place_of(q.name) d on true;

-- name: find_uploads
-- Uploads with the targets of their names, so that one statement tells both.
select q.position, d.uuid, d.access, d.repository, d.namespace, d.pinned, d.is_mirror,
    u.id, u."offset", u.sha256, u.object_key, u.multipart, u.part_etags, u.part_bytes, u.tail, u.tail_key, u.writer_until > now() as is_busy
from unnest(:names::text[], :ids::text[], :subjects::text[]) with ordinality as q (name, id, subject, position)
join place_of(q.name) d on true
left join upload u on u.id = q.id and u.repository = d.repository and u.subject = q.subject;

-- name: claim_upload^
-- Takes the lease of an upload that nobody writes to, and gives the upload as it is then. No row: another was quicker, or it has ended.
update upload u set writer = :writer, writer_until = now() + :lease::interval, touched_at = now()
where u.id = :id and u.repository = :repository and u.subject = :subject and (u.writer is null or u.writer_until < now())
returning u.id, u."offset", u.sha256, u.object_key, u.multipart, u.part_etags, u.part_bytes, u.tail, u.tail_key, false as is_busy;

-- name: renew_upload$
-- Goes on holding the lease. No row: the upload has ended, or the lease is another's.
update upload set writer_until = now() + :lease::interval, touched_at = now() where id = :id and writer = :writer returning true;

-- name: release_upload!
-- Ends a lease without a result: the upload is as it was before.
update upload set writer = null, writer_until = null where id = :id and writer = :writer;

-- name: begin_upload!
-- A new upload. A crash of the server may lose it, not what depends on it: nothing was received yet, so the disk is not waited for.
with hasty as (select set_config('synchronous_commit', 'off', true))
insert into upload (id, repository, subject) select :id, :repository, :subject from hasty;

-- name: save_upload$
-- What an upload has now, durable, and the end of the lease, if it still is this writer's. The object that held the remainder before has served.
with saved as (
    update upload u set
        "offset" = :offset, sha256 = :sha256, object_key = :object_key, multipart = :multipart, part_etags = :part_etags::text[],
        part_bytes = :part_bytes, tail = :tail, tail_key = :tail_key, writer = null, writer_until = null, touched_at = now()
    where u.id = :id and u.writer = :writer
    returning u.id
), owned as (
    update object o set owner = 'upload/' || saved.id from saved where o.key = :tail_key
), superseded as (
    update object o set delete_after = now() from saved where o.key = :old_tail_key and o.key is distinct from :tail_key
)
select true from saved;

-- name: cancel_upload$
-- Ends an upload; what it has at S3 is the keeper's, once a request that is writing to it has surely ended.
with ended as (
    delete from upload u where u.id = :id and u.repository = :repository and u.subject = :subject returning u.id
), leftover as (
    update object o set delete_after = now() + interval '15 minutes' from ended where o.owner = 'upload/' || ended.id
)
select true from ended;

-- name: reserve_keys!
-- Object keys for later, written before the first byte of any of them.
insert into object (key, owner) select key, :owner from unnest(:keys::text[]) as key;

-- name: open_part_upload$
-- Remembers what writes to a key, so that it can be ended by whoever cleans up. No row: the key was given up, being too old.
update object set owner = :owner, upload_id = :multipart where key = :key and delete_after is null returning true;

-- name: give_up_object!
-- An object that nothing will point at. S3 may still be at writing it, if it was given up for taking too long.
update object set delete_after = now() + interval '15 minutes' where key = :key;

-- name: store_pushed_blob!
-- Verified bytes become a blob of the repository, and the upload they came by ends.
select store_pushed_blob(:repository, :digest, :size, :key, :inline, :upload);

-- name: mount_blob^
-- Links a blob that is served, at this moment and to this token, by another name: by the source, or without one by any name that the token
-- may pull from, by public distributions and by those of namespaces that the subject may read all of. What is served where is decided as in
-- find_blobs. No row: nothing was found, or nothing that the token may see. Without a source the names are all tried; of the others a blob is
-- found for sure if few have it, or few may be read: 1,000 links, and 1,000 distributions of either kind, are looked at and no more, since
-- many may have what nobody may see. The limit of one row at a candidate keeps to looking up its link, instead of reading all links of the blob.
-- A digest that nobody has is looked for as well, as blob 0, which there never is: the time that it takes is not to tell.
with wanted as materialized (
    select coalesce(max(b.id), 0) as id, max(b.size) as size
    from blob b
    where b.digest = :digest and b.stored_at is not null and b.quarantined_at is null
), found as (
    select w.id, w.size
    from (
        select p.repository, p.pinned
        from unnest(:names::text[], :uuids::uuid[]) as g (name, uuid)
        cross join lateral (select * from place_of(g.name)) p
        where p.uuid = g.uuid and (:source::text is null or g.name = :source)
        union all
        select p.repository, p.pinned
        from place_of(:source) p
        where p.access = 'Public' or (p.resource = 'distributions' and p.namespace = any (:namespaces::text[]))
        union all
        select d.repository, d.pinned
        from (
            select l.repository from wanted w join repository_blob l on l.blob = w.id where :source is null limit 1000
        ) l
        cross join lateral (
            select d.repository, d.pinned from distribution d
            where d.repository = l.repository and (d.access = 'Public' or d.namespace = any (:namespaces))
            offset 0
        ) d
        union all
        (select d.repository, d.pinned from distribution d where :source is null and d.access = 'Public' limit 1000)
        union all
        (select d.repository, d.pinned from distribution d where :source is null and d.namespace = any (:namespaces) limit 1000)
    ) d
    cross join wanted w
    cross join lateral (
        select l.* from repository_blob l where l.repository = d.repository and l.blob = w.id limit 1
    ) l
    cross join lateral (
        select from repository r where r.id = d.repository and r.deleted_at is null limit 1
    ) r
    where case
        when d.pinned is null
            then not l.hidden and (l.in_latest > 0 or not l.named or l.left_at > now() - :grace::interval)
        else exists (
            select from manifest_blob e
            join repository_manifest x on x.manifest = e.manifest and x.repository = d.repository
            where e.blob = w.id and x.added <= d.pinned and (x.removed is null or x.removed > d.pinned)
        )
    end
    limit 1
)
select f.size, link_pushed_blob(:repository, f.id, f.size) from found f;

-- name: hide_blob$
-- Hides a blob of the latest version's followers.
select hide_blob(:repository, :digest);

-- name: touch_blob$
-- A client was told that the blob is here: it is not to be collected soon. No row: it was, meanwhile.
update repository_blob set touched_at = now() where repository = :repository and blob = :blob returning true;
