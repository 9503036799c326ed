-- migrate:up

-- A mirror takes its content from its sources alone: the registry refuses pushes and deletes, and says why.
alter table repository add column is_mirror boolean not null default false;
comment on column repository.is_mirror is 'the Repository has spec.mirror: no push, no delete';

-- A version that is pinned stays.
alter table distribution add constraint distribution_pinned foreign key (repository, pinned) references version (repository, number);

-- An upload session. What stands here is durable: an answer that names an offset is given after this row says so. The bytes are in
-- parts of a multipart upload (object_key, part_etags) and what is left over after them in tail (in PostgreSQL up to the inline limit) or in
-- an object of its own (tail_key), besides being the last part in case that nothing follows; an upload without parts whose bytes are in tail_key needs no multipart at all.
create table upload (
    id text primary key,
    repository bigint not null references repository on delete cascade,
    subject text not null,
    created_at timestamptz not null default now(),
    touched_at timestamptz not null default now(),
    "offset" bigint not null default 0 check ("offset" >= 0),
    sha256 text,
    object_key text,
    multipart text,
    part_etags text[] not null default '{}',
    part_bytes bigint not null default 0,
    tail bytea check (octet_length(tail) <= 32768),
    tail_key text,
    writer text,
    writer_until timestamptz,
    check ((multipart is null) = (object_key is null)),
    check (num_nonnulls(tail, tail_key) <= 1),
    check (part_bytes <= "offset")
);
comment on column upload.repository is 'an upload is known to nobody who came to it by another repository''s name';
comment on column upload.sha256 is 'hex digest of all bytes up to offset; null: not known, since a hash cannot go on in another process';
comment on column upload.part_bytes is 'bytes in parts; the rest up to offset is in tail or tail_key';
comment on column upload.writer is 'the request that writes at the moment, until writer_until';
create index upload_touched on upload (touched_at);
create index upload_repository on upload (repository);

comment on column object.owner is 'what began it: sync/<run id>, upload/<upload id>, registry/<process>';
-- Owners are looked up by what they begin with.
alter table object alter column owner type text collate "C";

create index manifest_child_parent_digest on manifest_child (digest, parent);
drop index manifest_child_digest;
create index distribution_public on distribution (repository) where access = 'Public';
create index distribution_namespace on distribution (namespace);
-- With the repository, so that neither those who hold a blob nor one of them is looked for by reading the links.
create index repository_blob_places on repository_blob (blob, repository);
drop index repository_blob_blob;

-- A version that was made does not change: a layer that is linked only after its manifests is in the sums from the next version on.
alter table repository_blob add column if not exists is_late boolean not null default false;
comment on column repository_blob.is_late is 'linked after the latest version, which names it, was made: not in its blobs and size';
create index repository_blob_late on repository_blob (repository, blob) where is_late;

-- What a name of the registry stands for: a Distribution's path, or r/<namespace>/<name>, under which every repository answers for those who hold
-- rights on it. No path begins with r/, so a name is one or the other.
create view place as
    select d.base_path as name, d.uuid, 'distributions' as resource, d.namespace, d.name as resource_name, d.access, d.repository, d.pinned,
        d.redirect, r.is_mirror
    from distribution d
    join repository r on r.id = d.repository
    where r.deleted_at is null
    union all
    select ('r/' || r.namespace || '/' || r.name) collate "C", r.uuid, 'repositories', r.namespace, r.name, 'Private', r.id, null, null, r.is_mirror
    from repository r
    where r.deleted_at is null;
create unique index repository_place on repository ((('r/' || namespace || '/' || name) collate "C")) where deleted_at is null;
-- A join with the view reads all of it, whatever it is joined on; the planner puts the function in line, and finds a name by the two indexes.
create function place_of(p_name text) returns setof place language sql stable as $$
    select * from place p where p.name = p_name limit 1
$$;

-- Locks a repository for a write by a client, and says why not if it takes none. The name that was written to is checked by the caller. The lock
-- keeps out other commits and lets blobs be stored and linked meanwhile, which would otherwise starve it where many are pushed at once.
create function writable_repository(p_repository bigint) returns void
language plpgsql security definer set search_path = public, pg_temp as $$
declare
    repo repository;
begin
    select * into repo from repository r where r.id = p_repository for no key update;
    if not found or repo.deleted_at is not null then
        raise exception 'the repository does not exist' using errcode = 'EN001';
    end if;
    if repo.is_mirror then
        raise exception 'the repository is a mirror' using errcode = 'EN006';
    end if;
end
$$;

-- How many manifests of a repository name a blob as a foreign layer, which may be without a link: in the latest version, and in any.
create index manifest_blob_foreign on manifest_blob (blob) where is_foreign;
create function foreign_names(p_repository bigint, p_blob bigint, out in_latest int, out in_any int)
language sql stable security definer set search_path = public, pg_temp as $$
    select count(*) filter (where named.is_latest), count(*) from (
        select bool_or(m.removed is null) as is_latest
        from manifest_blob e join repository_manifest m on m.manifest = e.manifest
        where e.is_foreign and e.blob = p_blob and m.repository = p_repository
        group by e.manifest
    ) named
$$;

-- Points a blob at bytes that were verified and links it to a repository, as a push, in one statement. The object, if there is one, must
-- be on record still: what the keeper has taken for abandoned is not pointed at (EN007). Another writer's bytes stay, and ours are left over.
create function store_pushed_blob(p_repository bigint, p_digest text, p_size bigint, p_key text, p_inline bytea, p_upload text)
returns void language plpgsql security definer set search_path = public, pg_temp as $$
declare
    stored blob;
    repo repository;
begin
    select * into repo from repository r where r.id = p_repository for key share;
    if not found or repo.deleted_at is not null then
        raise exception 'the repository does not exist' using errcode = 'EN001';
    end if;
    if repo.is_mirror then
        raise exception 'the repository is a mirror' using errcode = 'EN006';
    end if;
    if p_upload is not null then
        delete from upload u where u.id = p_upload and u.repository = p_repository;
        if not found then
            raise exception 'the upload has ended' using errcode = 'EN008';
        end if;
    end if;
    insert into blob (digest, size, object_key, inline, stored_at) values (p_digest, p_size, p_key, p_inline, now())
    on conflict (digest) do update set
        size = excluded.size,
        object_key = case when blob.stored_at is null or blob.quarantined_at is not null then excluded.object_key else blob.object_key end,
        inline = case when blob.stored_at is null or blob.quarantined_at is not null then excluded.inline else blob.inline end,
        stored_at = case when blob.stored_at is null or blob.quarantined_at is not null then excluded.stored_at else blob.stored_at end,
        quarantined_at = null,
        touched_at = now()
    returning * into stored;
    if p_key is not null and stored.object_key is not distinct from p_key then
        delete from object o where o.key = p_key and o.delete_after is null;
        if not found then
            raise exception 'the object is not on record any more' using errcode = 'EN007';
        end if;
    elsif p_key is not null then
        update object o set upload_id = null, delete_after = now() where o.key = p_key;
    end if;
    perform link_pushed_blob(p_repository, stored.id, stored.size);
end
$$;

-- Links a blob to a repository so that it is served there from now on: as an upload in progress, whatever was before. Manifests may name a
-- foreign layer before it is linked: a new link counts them, so that the commit that takes them away finds them counted. The blob's row is locked
-- by both: whichever comes second sees what the other did.
create function link_pushed_blob(p_repository bigint, p_blob bigint, p_size bigint)
returns void language sql security definer set search_path = public, pg_temp as $$
    select from blob b where b.id = p_blob for no key update;
    insert into repository_blob as l (repository, blob, size, in_latest, in_any, named, is_late)
    select p_repository, p_blob, p_size, c.in_latest, c.in_any, c.in_latest > 0, c.in_latest > 0 from foreign_names(p_repository, p_blob) c
    on conflict (repository, blob) do update set
        hidden = false, named = l.in_latest > 0, left_at = null, touched_at = now()
$$;

-- Hides a blob from those who follow the latest version. False: a manifest of the latest version names it (EN005), or there is none to hide.
create function hide_blob(p_repository bigint, p_digest text)
returns boolean language plpgsql security definer set search_path = public, pg_temp as $$
declare
    link repository_blob;
begin
    perform writable_repository(p_repository);
    select l.* into link from repository_blob l join blob b on b.id = l.blob
        where l.repository = p_repository and b.digest = p_digest for update of l;
    if not found or link.hidden then
        return false;
    end if;
    if link.in_latest > 0 then
        raise exception 'a manifest of the latest version names the blob' using errcode = 'EN005';
    end if;
    update repository_blob l set hidden = true where l.repository = p_repository and l.blob = link.blob;
    return true;
end
$$;

-- The one commit, as before but for these: blobs may be stored and linked meanwhile, an explicit delete may take a manifest out of an index, the
-- signatures of a manifest go with it, and a version made by a push is a step once another push follows within ten minutes.
create or replace function commit_content(
    p_repository bigint,
    p_cause_kind text,
    p_cause_name text,
    p_tag_names text[],
    p_tag_manifests bigint[],
    p_untag text[],
    p_manifests_add bigint[],
    p_manifests_remove bigint[],
    p_signatures_add bigint[],
    p_signatures_remove bigint[],
    p_ledger_kind text,
    p_ledger_name text,
    p_ledger_hash text,
    p_base bigint,
    p_is_step boolean,
    p_withdrawn boolean,
    out outcome text,
    out number bigint,
    out added_tags bigint,
    out removed_tags bigint
) language plpgsql security definer set search_path = public, pg_temp as $$
declare
    repo repository;
    previous version;
    new_number bigint;
    tag_names text[];
    tag_manifests bigint[];
    tags_touched text[];
    tags_gone text[];
    manifests_in bigint[];
    manifests_new bigint[];
    manifests_out bigint[];
    signatures_in bigint[];
    signatures_out bigint[];
    offender text;
    change record;
    late record;
begin
    if cardinality(p_tag_names) + cardinality(p_manifests_add) + cardinality(p_manifests_remove) > 1000 then
        -- A plan that knows the arrays looks them up by hash; one made for any array compares element by element. Statistics
        -- lag behind a large sync, and a nested loop chosen from old ones takes minutes where a hash join takes milliseconds.
        perform set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_nestloop', 'off', true);
    end if;
    select * into repo from repository r where r.id = p_repository for no key update;
    if not found or repo.deleted_at is not null then
        raise exception 'the repository does not exist' using errcode = 'EN001';
    end if;
    if p_ledger_kind is not null then
        select 'AlreadyApplied', l.version into outcome, number from ledger l
            where l.repository = p_repository and l.kind = p_ledger_kind and l.name = p_ledger_name and l.hash = p_ledger_hash;
        if found then
            return;
        end if;
    end if;
    if p_base is not null and p_base <> repo.latest then
        raise exception 'the latest version is %, not %', repo.latest, p_base using errcode = 'EN002';
    end if;

    -- What really changes.
    select coalesce(array_agg(wanted.name order by wanted.name), '{}'), coalesce(array_agg(wanted.manifest order by wanted.name), '{}')
        into tag_names, tag_manifests
        from (
            select distinct on (w.name collate "C") w.name collate "C" as name, w.manifest
            from unnest(p_tag_names, p_tag_manifests) with ordinality as w (name, manifest, position)
            order by w.name collate "C", w.position desc
        ) wanted
        where not exists (
            select from tag t
            where t.repository = p_repository and t.name = wanted.name and t.removed is null and t.manifest = wanted.manifest
        );
    tags_touched := tag_names || array(select unnest(p_untag) except select unnest(p_tag_names));
    tags_gone := array(
        select t.name from tag t
        where t.repository = p_repository and t.removed is null and t.name = any (tags_touched)
        order by t.name
    );
    manifests_in := array(
        select distinct id from unnest(p_manifests_add) as id
        where not exists (
            select from repository_manifest m where m.repository = p_repository and m.manifest = id and m.removed is null
        )
        order by id
    );
    manifests_new := array(
        select id from unnest(manifests_in) as id
        where not exists (select from repository_manifest m where m.repository = p_repository and m.manifest = id)
    );
    manifests_out := array(
        select m.manifest from repository_manifest m
        where m.repository = p_repository and m.removed is null
            and m.manifest = any (p_manifests_remove) and m.manifest <> all (p_manifests_add)
        order by m.manifest
    );
    signatures_in := array(
        select distinct id from unnest(p_signatures_add) as id
        where not exists (
            select from repository_signature s where s.repository = p_repository and s.signature = id and s.removed is null
        )
        order by id
    );
    -- A signature goes with the manifest that it signs.
    signatures_out := array(
        select s.signature from repository_signature s
        where s.repository = p_repository and s.removed is null and s.signature <> all (p_signatures_add)
            and s.signature = any (p_signatures_remove || array(
                select g.id from signature g join manifest m on m.digest = g.manifest where m.id = any (manifests_out)
            ))
        order by s.signature
    );

    added_tags := cardinality(tag_names);
    removed_tags := cardinality(tags_gone);
    if added_tags + removed_tags = 0
        and cardinality(manifests_in || manifests_out) = 0 and cardinality(signatures_in || signatures_out) = 0
    then
        outcome := 'NoChange';
        if p_ledger_kind is not null then
            insert into ledger (repository, kind, name, hash, outcome)
                values (p_repository, p_ledger_kind, p_ledger_name, p_ledger_hash, outcome);
        end if;
        return;
    end if;

    -- What must hold.
    select w.name into offender from unnest(tag_names, tag_manifests) as w (name, manifest)
        where w.manifest <> all (manifests_in) and (
            w.manifest = any (manifests_out) or not exists (
                select from repository_manifest m
                where m.repository = p_repository and m.manifest = w.manifest and m.removed is null
            )
        ) limit 1;
    if found then
        raise exception 'the manifest of tag % is not in the repository', offender using errcode = 'EN003';
    end if;
    select b.digest into offender from manifest_blob e join blob b on b.id = e.blob
        where e.manifest = any (manifests_in) and not e.is_foreign
            and not exists (select from repository_blob l where l.repository = p_repository and l.blob = e.blob)
        limit 1;
    if found then
        raise exception 'blob % is not in the repository', offender using errcode = 'EN004';
    end if;
    select m.digest into offender from unnest(manifests_out) as gone (id) join manifest m on m.id = gone.id
        where exists (
            select from tag t where t.manifest = gone.id and t.repository = p_repository and t.removed is null
                and t.name <> all (tags_gone)
        ) or not p_withdrawn and exists (
            -- An explicit delete removes what it names, also out of an index, which may list what is not here.
            select from manifest_child c join repository_manifest p on p.manifest = c.parent
            where c.digest = m.digest and p.repository = p_repository and p.removed is null
                and p.manifest <> all (manifests_out)
        ) limit 1;
    if found then
        raise exception 'manifest % is still tagged or listed', offender using errcode = 'EN005';
    end if;

    perform from blob b
        where b.id = any (array(select e.blob from manifest_blob e where e.manifest = any (manifests_in || manifests_out) and e.is_foreign))
        order by b.id for no key update;

    -- The change.
    new_number := repo.last_number + 1;
    update tag t set removed = new_number where t.repository = p_repository and t.removed is null and t.name = any (tags_gone);
    insert into tag (repository, name, manifest, added)
        select p_repository, w.name, w.manifest, new_number from unnest(tag_names, tag_manifests) as w (name, manifest);
    update repository_manifest m set removed = new_number
        where m.repository = p_repository and m.removed is null and m.manifest = any (manifests_out);
    insert into repository_manifest (repository, manifest, added) select p_repository, id, new_number from unnest(manifests_in) as id;
    update repository_signature s set removed = new_number
        where s.repository = p_repository and s.removed is null and s.signature = any (signatures_out);
    insert into repository_signature (repository, signature, added) select p_repository, id, new_number from unnest(signatures_in) as id;

    -- What the latest version names and could not count when it was made comes in first, and may leave with this very change.
    with counted as (
        update repository_blob l set is_late = false where l.repository = p_repository and l.is_late returning l.size
    )
    select count(*) as blobs, coalesce(sum(c.size), 0) as size into late from counted c;
    with named as (
        select e.blob, e.manifest, (e.manifest = any (manifests_in))::int * 2 - 1 as latest,
            (e.manifest = any (manifests_new))::int as ever
        from manifest_blob e where e.manifest = any (manifests_in || manifests_out)
        group by e.blob, e.manifest
    ), delta as (
        select blob, sum(latest)::int as latest, sum(ever)::int as ever, bool_or(latest > 0) as wanted from named group by blob
    ), counted as (
        update repository_blob l set
            in_latest = l.in_latest + d.latest,
            in_any = l.in_any + d.ever,
            named = true,
            hidden = l.hidden and not d.wanted,
            touched_at = now(),
            left_at = case when l.in_latest + d.latest > 0 or p_withdrawn then null when l.in_latest > 0 then now() else l.left_at end
        from delta d where l.repository = p_repository and l.blob = d.blob
        returning l.in_latest > 0 and l.in_latest - d.latest = 0 as entered, l.in_latest = 0 and d.latest < 0 as departed, l.size
    ), bodies as (
        select coalesce(sum(m.size) filter (where m.id = any (manifests_in)), 0)
                - coalesce(sum(m.size) filter (where m.id = any (manifests_out)), 0) as size,
            count(*) filter (where m.kind = 'index' and m.id = any (manifests_in))
                - count(*) filter (where m.kind = 'index' and m.id = any (manifests_out)) as indexes
        from manifest m where m.id = any (manifests_in || manifests_out)
    )
    select count(*) filter (where entered) as added_blobs, count(*) filter (where departed) as removed_blobs,
            coalesce(sum(c.size) filter (where entered), 0) - coalesce(sum(c.size) filter (where departed), 0)
                + (select b.size from bodies b) as size,
            (select b.indexes from bodies b) as indexes
        into change from counted c;

    select * into previous from version v where v.repository = p_repository and v.number = repo.latest;
    insert into version (
        repository, number, base, cause_kind, cause_name, is_step, withdrawn, added_tags, removed_tags, added_manifests,
        removed_manifests, added_blobs, removed_blobs, added_signatures, removed_signatures, tags, manifests, indexes, blobs,
        signatures, size
    ) values (
        p_repository, new_number, repo.latest, p_cause_kind, p_cause_name, p_is_step, p_withdrawn, added_tags, removed_tags,
        cardinality(manifests_in), cardinality(manifests_out), change.added_blobs, change.removed_blobs,
        cardinality(signatures_in), cardinality(signatures_out),
        coalesce(previous.tags, 0) + added_tags - removed_tags,
        coalesce(previous.manifests, 0) + cardinality(manifests_in) - cardinality(manifests_out),
        coalesce(previous.indexes, 0) + change.indexes,
        coalesce(previous.blobs, 0) + late.blobs + change.added_blobs - change.removed_blobs,
        coalesce(previous.signatures, 0) + cardinality(signatures_in) - cardinality(signatures_out),
        coalesce(previous.size, 0) + late.size + change.size
    );
    if p_cause_kind = 'Push' and previous.cause_kind = 'Push' and previous.created_at > now() - interval '10 minutes' then
        update version v set is_step = true where v.repository = p_repository and v.number = previous.number;
    end if;
    update repository r set latest = new_number, last_number = new_number where r.id = p_repository;
    outcome := 'Changed';
    number := new_number;
    if p_ledger_kind is not null then
        insert into ledger (repository, kind, name, hash, outcome, version)
            values (p_repository, p_ledger_kind, p_ledger_name, p_ledger_hash, outcome, new_number);
    end if;
end
$$;

-- The same bytes may be said to sign several manifests, and by several names: what one client says of them is not what another finds.
alter table signature drop constraint signature_digest_key;
alter table signature add constraint signature_unique unique (manifest, digest, name);
drop index signature_manifest;

-- Stores manifests with their edges, set-wise, and gives the ids of all of them. A digest that is known keeps its first media type. The blobs
-- that are named get rows, not bytes. Rows are always inserted in the order of digests: writers of the same ones wait for each other, and
-- never in a circle.
create function store_manifests(p_manifests jsonb, p_bodies bytea[], p_blobs jsonb, p_children jsonb)
returns table (digest text, id bigint) language plpgsql security definer set search_path = public, pg_temp as $$
begin
    insert into blob (digest)
        select distinct e.digest collate "C" from jsonb_to_recordset(p_blobs) as e (digest text)
        where not exists (select from blob b where b.digest = e.digest)
        order by 1
    on conflict do nothing;
    with inserted as (
        insert into manifest as n (digest, media_type, kind, artifact_type, subject, os, architecture, variant, annotations, labels, size, body)
        select m.digest, m.media_type, m.kind, m.artifact_type, m.subject, m.os, m.architecture, m.variant, m.annotations, m.labels,
            octet_length(m.body), m.body
        from rows from (
            jsonb_to_recordset(p_manifests) as (
                digest text, media_type text, kind text, artifact_type text, subject text, os text, architecture text, variant text,
                annotations jsonb, labels jsonb
            ),
            unnest(p_bodies)
        ) as m (digest, media_type, kind, artifact_type, subject, os, architecture, variant, annotations, labels, body)
        where not exists (select from manifest k where k.digest = m.digest)
        order by m.digest collate "C"
        on conflict do nothing
        returning n.id, n.digest
    ), named as (
        -- A blob without a row is an error (blob is not null), not an edge less.
        insert into manifest_blob (manifest, position, blob, role, media_type, size, is_foreign)
        select i.id, e.position, b.id, e.role, e.media_type, e.size, e.is_foreign
        from inserted i
        join jsonb_to_recordset(p_blobs) as e (
            manifest text, position int, digest text, role text, media_type text, size bigint, is_foreign boolean
        ) on e.manifest = i.digest
        left join blob b on b.digest = e.digest
        order by b.id, i.id, e.position
    )
    insert into manifest_child (parent, position, digest, os, architecture, variant)
    select i.id, c.position, c.digest, c.os, c.architecture, c.variant
    from inserted i
    join jsonb_to_recordset(p_children) as c (manifest text, position int, digest text, os text, architecture text, variant text)
        on c.manifest = i.digest;
    return query select k.digest, k.id from manifest k
        where k.digest = any (array(select m.digest from jsonb_to_recordset(p_manifests) as m (digest text)));
end
$$;

-- A push of one manifest in one statement: what it needs, the manifest, the version. Either `missing` names what has to be here before it, and
-- nothing was written; or `number` is the latest version, made now, or made earlier by the same push. One manifest needs no plan of its own:
-- making plans would take longer than carrying them out.
create function push_manifest(
    p_repository bigint, p_cause text, p_tags text[], p_blobs_needed text[], p_manifests_needed text[],
    p_manifest jsonb, p_body bytea, p_blobs jsonb, p_children jsonb,
    out missing text[], out number bigint
) language plpgsql security definer set search_path = public, pg_temp set plan_cache_mode = force_generic_plan as $$
declare
    stored bigint;
begin
    perform writable_repository(p_repository);
    missing := array(
        select n.digest from unnest(p_blobs_needed) with ordinality as n (digest, position)
        where not exists (
            select from blob b join repository_blob l on l.blob = b.id
            where b.digest = n.digest and l.repository = p_repository
                and not l.hidden and b.stored_at is not null and b.quarantined_at is null
        )
        order by n.position
    ) || array(
        select n.digest from unnest(p_manifests_needed) with ordinality as n (digest, position)
        where not exists (
            select from manifest m join repository_manifest r on r.manifest = m.id
            where m.digest = n.digest and r.repository = p_repository and r.removed is null
        )
        order by n.position
    );
    if cardinality(missing) > 0 then
        return;
    end if;
    select s.id into stored from store_manifests(jsonb_build_array(p_manifest), array[p_body], p_blobs, p_children) s;
    perform commit_content(
        p_repository, 'Push', p_cause, p_tags, array_fill(stored, array[cardinality(p_tags)]), '{}', array[stored], '{}', '{}', '{}',
        null, null, null, null, false, false
    );
    select r.latest into number from repository r where r.id = p_repository;
end
$$;

-- Deletes a tag, or a manifest with its tags and signatures, in one version. Null: there is none in the latest.
create function delete_manifest(p_repository bigint, p_tag text, p_digest text)
returns bigint language plpgsql security definer set search_path = public, pg_temp as $$
declare
    manifests bigint[];
    tags text[];
begin
    perform writable_repository(p_repository);
    manifests := array(
        select m.id from manifest m join repository_manifest r on r.manifest = m.id
        where m.digest = p_digest and r.repository = p_repository and r.removed is null
    );
    tags := array(
        select t.name from tag t
        where t.repository = p_repository and t.removed is null and (t.name = p_tag or t.manifest = any (manifests))
    );
    if cardinality(tags) + cardinality(manifests) = 0 then
        return null;
    end if;
    return (
        select c.number from commit_content(
            p_repository, 'Delete', coalesce(p_tag, p_digest), '{}', '{}', tags, '{}', manifests, '{}', '{}', null, null, null, null, false, true
        ) c
    );
end
$$;

-- Adds a signature to a manifest of the latest version. Outcome: Unknown, there is no such manifest; TooMany, it has as many as it may have;
-- otherwise Signed, and number is the latest version: the same signature again, by whatever name, makes none.
create function sign_manifest(
    p_repository bigint, p_manifest text, p_name text, p_digest text, p_content bytea, p_limit int, out outcome text, out number bigint
) language plpgsql security definer set search_path = public, pg_temp as $$
declare
    signed text[];
    made bigint;
begin
    perform writable_repository(p_repository);
    if not exists (
        select from manifest m join repository_manifest r on r.manifest = m.id
        where m.digest = p_manifest and r.repository = p_repository and r.removed is null
    ) then
        outcome := 'Unknown';
        return;
    end if;
    signed := array(
        select g.digest from signature g join repository_signature s on s.signature = g.id
        where g.manifest = p_manifest and s.repository = p_repository and s.removed is null
    );
    if p_digest <> all (signed) then
        if cardinality(signed) >= p_limit then
            outcome := 'TooMany';
            return;
        end if;
        insert into signature (digest, manifest, name, content) values (p_digest, p_manifest, p_name, p_content) on conflict do nothing;
        select g.id into made from signature g where g.manifest = p_manifest and g.digest = p_digest and g.name = p_name;
        perform commit_content(
            p_repository, 'Push', p_manifest, '{}', '{}', '{}', '{}', '{}', array[made], '{}', null, null, null, null, false, false
        );
    end if;
    outcome := 'Signed';
    select r.latest into number from repository r where r.id = p_repository;
end
$$;

-- A version as somebody sees it who came by a name: the one by that number, or without a number the one that is served there. Who sees the
-- whole history sees every retained version, unless the place is pinned; everybody else sees what is served and nothing else. What is in `at`
-- and not in `not_at` is what was asked for: all of the version, or what was added or removed since its base. There is always one row.
create function seen_version(p_name text, p_history boolean, p_number bigint, p_change text)
returns table (
    place uuid, access text, repository bigint, sees_history boolean, number bigint, base bigint, "at" bigint, not_at bigint
) language sql stable as $$
    select d.uuid, d.access, d.repository, p_history and d.pinned is null, v.number, v.base,
        case when p_change is distinct from 'removed' then v.number when p_history and d.pinned is null then v.base else 0 end,
        case p_change when 'added' then v.base when 'removed' then v.number else 0 end
    from (select) as request
    left join place_of(p_name) d on true
    left join repository r on r.id = d.repository
    left join version v on v.repository = d.repository
        and v.number = coalesce(p_number, d.pinned, r.latest)
        and (p_history and d.pinned is null or v.number = coalesce(d.pinned, r.latest))
$$;

-- Bytes of a manifest and of the blobs it names; of an index also those of the images that it lists and the repository holds. Each counts once.
create function image_size(p_repository bigint, p_manifest bigint) returns bigint language sql stable as $$
    with part as (
        select p_manifest as id
        union
        select c.id from manifest_child k join manifest c on c.digest = k.digest
        where k.parent = p_manifest
            and exists (select from repository_manifest x where x.repository = p_repository and x.manifest = c.id)
    )
    select (
        (select sum(m.size) from part join manifest m on m.id = part.id)
        + coalesce((select sum(size) from (select distinct e.blob, e.size from part join manifest_blob e on e.manifest = part.id) b), 0)
    )::bigint
$$;

revoke all on function foreign_names, store_manifests, push_manifest, delete_manifest, sign_manifest from public;
grant execute on function push_manifest, delete_manifest, sign_manifest to entrepot_registry;
grant execute on function foreign_names, store_manifests to entrepot_syncer;

revoke all on function seen_version, image_size from public;
grant execute on function seen_version, image_size to entrepot_registry;

revoke all on function writable_repository, store_pushed_blob, link_pushed_blob, hide_blob from public;
grant execute on function writable_repository, store_pushed_blob, link_pushed_blob, hide_blob to entrepot_registry;

grant select on place to entrepot_registry, entrepot_token;
grant select, insert, update, delete on upload to entrepot_registry;
grant select, insert on object to entrepot_registry;
grant update (owner, upload_id, delete_after) on object to entrepot_registry;
grant update (touched_at) on manifest, repository_blob to entrepot_registry;
grant select on ledger to entrepot_registry;
grant select (
    id, repository, trigger, request, created_at, started_at, finished_at, attempts, phase, outcome, reason, message, version, added, removed,
    bytes_transferred, failed_tags, failed_tag_count
) on sync_run to entrepot_registry;
grant update (is_mirror) on repository to entrepot_operator;

grant select (id, object_key, multipart, tail_key, "offset", touched_at, writer_until) on upload to entrepot_keeper;
grant delete on upload to entrepot_keeper;
grant select, delete on object to entrepot_keeper;
grant update (upload_id, delete_after) on object to entrepot_keeper;
grant select (id, object_key) on blob to entrepot_keeper;
grant select (id, finished_at) on sync_run to entrepot_keeper;

-- migrate:down
-- commit_content stays as it is: it does all that the older one did. With it stays what it reads, repository_blob.is_late.
drop function seen_version, image_size;
drop function place_of;
drop view place;
drop index repository_place;
drop function sign_manifest, delete_manifest, push_manifest, store_manifests;
drop function hide_blob, store_pushed_blob, link_pushed_blob, writable_repository, foreign_names;
drop index manifest_blob_foreign;
alter table signature drop constraint signature_unique;
alter table signature add constraint signature_digest_key unique (digest);
create index signature_manifest on signature (manifest);
drop index repository_blob_late;
create index repository_blob_blob on repository_blob (blob);
drop index repository_blob_places;
drop index distribution_namespace;
drop index distribution_public;
create index manifest_child_digest on manifest_child (digest);
drop index manifest_child_parent_digest;
revoke insert on object from entrepot_registry;
revoke all on object, blob, sync_run from entrepot_keeper;
alter table object alter column owner type text collate "default";
revoke all on ledger, sync_run from entrepot_registry;
drop table upload;
alter table distribution drop constraint distribution_pinned;
alter table repository drop column is_mirror;
