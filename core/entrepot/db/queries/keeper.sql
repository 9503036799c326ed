-- What the keeper asks. An object that is marked (delete_after is set) is never pointed at any more: who points a blob at an object takes its
-- row away in the same transaction, and finds none that is marked. So marking is the decision, and removing may take its time.
--
-- Keys are looked up in blob by a subquery that stays one: as an anti-join it might read all blobs to find a few.

-- name: try_lock$
-- A lock of this connection's session: one keeper works.
select pg_try_advisory_lock(hashtextextended('entrepot/keeper', 0));

-- name: expire_uploads^
-- Ends uploads that nobody went on with and nobody writes to at the moment, and marks their objects. Whoever touches one meanwhile keeps it:
-- the row is looked at again once it is locked.
with idle as materialized (
    select id from upload
    where touched_at < now() - :expiry::interval and (writer_until is null or writer_until < now())
    order by touched_at
    limit :batch
), ended as (
    delete from upload u using idle
    where u.id = idle.id and u.touched_at < now() - :expiry::interval and (u.writer_until is null or u.writer_until < now())
    returning u.id, u.object_key, u.multipart, u.tail_key, u."offset"
), marked as (
    update object o set delete_after = now() + :delay::interval, upload_id = coalesce(k.multipart, o.upload_id)
    from (
        select object_key collate "C" as key, multipart from ended where object_key is not null
        union all
        select tail_key collate "C", null from ended where tail_key is not null
    ) k
    where o.key = k.key and o.delete_after is null
        and (select b.id from blob b where b.object_key = o.key collate "default") is null
)
select count(*) as uploads, coalesce(sum("offset"), 0)::bigint as bytes from ended;

-- name: mark_abandoned$
-- Marks objects whose owner will not come back: reserved by a registry long ago, of a sync run that has ended, of an upload that is none any more.
-- Gives how many.
with abandoned as materialized (
    select c.key, c.owner
    from (
        select o.key, o.owner from object o
        where o.delete_after is null and o.owner >= 'registry/' and o.owner < 'registry0'
            and o.created_at < now() - :reservation::interval
        union all
        select o.key, o.owner from object o
        where o.delete_after is null and o.owner >= 'sync/' and o.owner < 'sync0'
            and not exists (
                select from sync_run r where r.finished_at is null and r.id::text = substr(o.owner, 6) collate "default"
            )
        union all
        select o.key, o.owner from object o
        where o.delete_after is null and o.owner >= 'upload/' and o.owner < 'upload0'
            and not exists (select from upload u where u.id = substr(o.owner, 8) collate "default")
    ) c
    where (select b.id from blob b where b.object_key = c.key collate "default") is null
        and not exists (select from upload u where u.object_key = c.key collate "default")
        and not exists (select from upload u where u.tail_key = c.key collate "default")
    limit :batch
), marked as (
    update object o set delete_after = now() + :delay::interval from abandoned a
    where o.key = a.key and o.owner = a.owner and o.delete_after is null
    returning o.key
)
select count(*) from marked;

-- name: removable_objects
-- Marked objects whose time has come, with the multipart upload to abort first, if one was begun.
select o.key, o.upload_id from object o
where o.delete_after <= now() and o.key > :after
    and (select b.id from blob b where b.object_key = o.key collate "default") is null
    and not exists (select from upload u where u.object_key = o.key collate "default")
    and not exists (select from upload u where u.tail_key = o.key collate "default")
order by o.key
limit :batch;

-- name: forget_objects$
-- Rows of objects that S3 does not have any more. Gives how many.
with gone as (
    delete from object where key = any (:keys::text[]) and delete_after <= now() returning key
)
select count(*) from gone;

-- name: count_marked$
-- Objects that wait to be removed.
select count(*) from object where delete_after is not null;
