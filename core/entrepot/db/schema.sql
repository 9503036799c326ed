-- Made from the migrations by `make schema`; a test compares.


CREATE FUNCTION public.commit_content(p_repository bigint, p_cause_kind text, p_cause_name text, p_tag_names text[], p_tag_manifests bigint[], p_untag text[], p_manifests_add bigint[], p_manifests_remove bigint[], p_signatures_add bigint[], p_signatures_remove bigint[], p_ledger_kind text, p_ledger_name text, p_ledger_hash text, p_base bigint, p_is_step boolean, p_withdrawn boolean, OUT outcome text, OUT number bigint, OUT added_tags bigint, OUT removed_tags bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.delete_manifest(p_repository bigint, p_tag text, p_digest text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.foreign_names(p_repository bigint, p_blob bigint, OUT in_latest integer, OUT in_any integer) RETURNS record
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
    select count(*) filter (where named.is_latest), count(*) from (
        select bool_or(m.removed is null) as is_latest
        from manifest_blob e join repository_manifest m on m.manifest = e.manifest
        where e.is_foreign and e.blob = p_blob and m.repository = p_repository
        group by e.manifest
    ) named
$$;

CREATE FUNCTION public.hide_blob(p_repository bigint, p_digest text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.image_size(p_repository bigint, p_manifest bigint) RETURNS bigint
    LANGUAGE sql STABLE
    AS $$
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

CREATE FUNCTION public.link_pushed_blob(p_repository bigint, p_blob bigint, p_size bigint) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
    select from blob b where b.id = p_blob for no key update;
    insert into repository_blob as l (repository, blob, size, in_latest, in_any, named, is_late)
    select p_repository, p_blob, p_size, c.in_latest, c.in_any, c.in_latest > 0, c.in_latest > 0 from foreign_names(p_repository, p_blob) c
    on conflict (repository, blob) do update set
        hidden = false, named = l.in_latest > 0, left_at = null, touched_at = now()
$$;

CREATE TABLE public.distribution (
    uuid uuid NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    base_path text NOT NULL COLLATE pg_catalog."C",
    repository bigint NOT NULL,
    pinned bigint,
    access text NOT NULL,
    redirect boolean,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT distribution_access_check CHECK ((access = ANY (ARRAY['Public'::text, 'Authenticated'::text, 'Private'::text])))
);

CREATE TABLE public.repository (
    id bigint NOT NULL,
    uuid uuid DEFAULT gen_random_uuid() NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    resource_uid uuid NOT NULL,
    latest bigint DEFAULT 0 NOT NULL,
    last_number bigint DEFAULT 0 NOT NULL,
    projected bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    deleted_at timestamp with time zone,
    purge_after timestamp with time zone,
    is_mirror boolean DEFAULT false NOT NULL,
    CONSTRAINT repository_check CHECK ((latest <= last_number)),
    CONSTRAINT repository_check1 CHECK (((deleted_at IS NULL) = (purge_after IS NULL)))
);

COMMENT ON COLUMN public.repository.latest IS 'number of the latest version; 0 while there is none';

COMMENT ON COLUMN public.repository.last_number IS 'highest number ever given to a version; numbers never go back';

COMMENT ON COLUMN public.repository.projected IS 'the latest version that the custom resources show';

COMMENT ON COLUMN public.repository.is_mirror IS 'the Repository has spec.mirror: no push, no delete';

CREATE VIEW public.place AS
 SELECT d.base_path AS name,
    d.uuid,
    'distributions'::text AS resource,
    d.namespace,
    d.name AS resource_name,
    d.access,
    d.repository,
    d.pinned,
    d.redirect,
    r.is_mirror
   FROM (public.distribution d
     JOIN public.repository r ON ((r.id = d.repository)))
  WHERE (r.deleted_at IS NULL)
UNION ALL
 SELECT (((('r/'::text || r.namespace) || '/'::text) || r.name) COLLATE "C") AS name,
    r.uuid,
    'repositories'::text AS resource,
    r.namespace,
    r.name AS resource_name,
    'Private'::text AS access,
    r.id AS repository,
    NULL::bigint AS pinned,
    NULL::boolean AS redirect,
    r.is_mirror
   FROM public.repository r
  WHERE (r.deleted_at IS NULL);

CREATE FUNCTION public.place_of(p_name text) RETURNS SETOF public.place
    LANGUAGE sql STABLE
    AS $$
    select * from place p where p.name = p_name limit 1
$$;

CREATE FUNCTION public.push_manifest(p_repository bigint, p_cause text, p_tags text[], p_blobs_needed text[], p_manifests_needed text[], p_manifest jsonb, p_body bytea, p_blobs jsonb, p_children jsonb, OUT missing text[], OUT number bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION public.seen_version(p_name text, p_history boolean, p_number bigint, p_change text) RETURNS TABLE(place uuid, access text, repository bigint, sees_history boolean, number bigint, base bigint, at bigint, not_at bigint)
    LANGUAGE sql STABLE
    AS $$
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

CREATE FUNCTION public.sign_manifest(p_repository bigint, p_manifest text, p_name text, p_digest text, p_content bytea, p_limit integer, OUT outcome text, OUT number bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.store_manifests(p_manifests jsonb, p_bodies bytea[], p_blobs jsonb, p_children jsonb) RETURNS TABLE(digest text, id bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.store_pushed_blob(p_repository bigint, p_digest text, p_size bigint, p_key text, p_inline bytea, p_upload text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.writable_repository(p_repository bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
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

CREATE TABLE public.base_path_claim (
    path text NOT NULL COLLATE pg_catalog."C",
    namespace text NOT NULL,
    distribution uuid,
    claimed_at timestamp with time zone DEFAULT now() NOT NULL,
    released_at timestamp with time zone,
    CONSTRAINT base_path_claim_check CHECK (((distribution IS NULL) = (released_at IS NOT NULL)))
);

CREATE TABLE public.blob (
    id bigint NOT NULL,
    digest text NOT NULL COLLATE pg_catalog."C",
    size bigint,
    object_key text,
    inline bytea,
    stored_at timestamp with time zone,
    touched_at timestamp with time zone DEFAULT now() NOT NULL,
    quarantined_at timestamp with time zone,
    CONSTRAINT blob_check CHECK ((num_nonnulls(object_key, inline) <= 1)),
    CONSTRAINT blob_check1 CHECK (((num_nonnulls(object_key, inline) = 1) = ((size IS NOT NULL) AND (stored_at IS NOT NULL)))),
    CONSTRAINT blob_check2 CHECK (((inline IS NULL) OR (octet_length(inline) = size))),
    CONSTRAINT blob_inline_check CHECK ((octet_length(inline) <= 32768)),
    CONSTRAINT blob_size_check CHECK ((size >= 0))
);

ALTER TABLE public.blob ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.blob_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.blob_origin (
    blob bigint NOT NULL,
    origin text NOT NULL,
    name text NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.ledger (
    repository bigint NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    hash text NOT NULL,
    outcome text NOT NULL,
    version bigint,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.manifest (
    id bigint NOT NULL,
    digest text NOT NULL COLLATE pg_catalog."C",
    media_type text NOT NULL,
    kind text NOT NULL,
    artifact_type text,
    subject text COLLATE pg_catalog."C",
    os text,
    architecture text,
    variant text,
    annotations jsonb DEFAULT '{}'::jsonb NOT NULL,
    labels jsonb DEFAULT '{}'::jsonb NOT NULL,
    size bigint NOT NULL,
    body bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    touched_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT manifest_check CHECK ((size = octet_length(body)))
);

CREATE TABLE public.manifest_blob (
    manifest bigint NOT NULL,
    "position" integer NOT NULL,
    blob bigint NOT NULL,
    role text NOT NULL,
    media_type text NOT NULL,
    size bigint NOT NULL,
    is_foreign boolean DEFAULT false NOT NULL,
    CONSTRAINT manifest_blob_role_check CHECK ((role = ANY (ARRAY['config'::text, 'layer'::text])))
);

COMMENT ON COLUMN public.manifest_blob.size IS 'as the manifest claims; blob.size is what was verified';

CREATE TABLE public.manifest_child (
    parent bigint NOT NULL,
    "position" integer NOT NULL,
    digest text NOT NULL COLLATE pg_catalog."C",
    os text,
    architecture text,
    variant text
);

ALTER TABLE public.manifest ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.manifest_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.object (
    key text NOT NULL COLLATE pg_catalog."C",
    owner text NOT NULL COLLATE pg_catalog."C",
    upload_id text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    delete_after timestamp with time zone
);

COMMENT ON COLUMN public.object.owner IS 'what began it: sync/<run id>, upload/<upload id>, registry/<process>';

COMMENT ON COLUMN public.object.upload_id IS 'the multipart upload at S3, while one is open';

CREATE TABLE public.remote (
    uuid uuid NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    url text NOT NULL,
    contact_at timestamp with time zone,
    contact_outcome text,
    contact_message text
);

COMMENT ON COLUMN public.remote.uuid IS 'the UID of the Remote';

COMMENT ON COLUMN public.remote.contact_outcome IS 'Reachable, or the reason of the failure, as the last run that spoke to it found';

CREATE TABLE public.remote_credential (
    remote uuid NOT NULL,
    key_id text NOT NULL,
    ciphertext bytea NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.repository_blob (
    repository bigint NOT NULL,
    blob bigint NOT NULL,
    size bigint NOT NULL,
    in_latest integer DEFAULT 0 NOT NULL,
    in_any integer DEFAULT 0 NOT NULL,
    named boolean DEFAULT false NOT NULL,
    hidden boolean DEFAULT false NOT NULL,
    touched_at timestamp with time zone DEFAULT now() NOT NULL,
    left_at timestamp with time zone,
    is_late boolean DEFAULT false NOT NULL,
    CONSTRAINT repository_blob_check CHECK ((in_any >= in_latest)),
    CONSTRAINT repository_blob_in_latest_check CHECK ((in_latest >= 0))
);

COMMENT ON COLUMN public.repository_blob.in_latest IS 'manifests of the latest version that name it';

COMMENT ON COLUMN public.repository_blob.in_any IS 'manifests of any retained version that name it; never grants a read by itself';

COMMENT ON COLUMN public.repository_blob.named IS 'a manifest here has named it at some time; until then it belongs to an upload in progress';

COMMENT ON COLUMN public.repository_blob.left_at IS 'when it left the latest version other than by explicit delete';

COMMENT ON COLUMN public.repository_blob.is_late IS 'linked after the latest version, which names it, was made: not in its blobs and size';

ALTER TABLE public.repository ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.repository_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.repository_manifest (
    repository bigint NOT NULL,
    manifest bigint NOT NULL,
    added bigint NOT NULL,
    removed bigint,
    CONSTRAINT repository_manifest_check CHECK ((removed > added))
);

CREATE TABLE public.repository_signature (
    repository bigint NOT NULL,
    signature bigint NOT NULL,
    added bigint NOT NULL,
    removed bigint,
    CONSTRAINT repository_signature_check CHECK ((removed > added))
);

CREATE TABLE public.schema_migrations (
    version character varying NOT NULL
);

CREATE TABLE public.signature (
    id bigint NOT NULL,
    digest text NOT NULL COLLATE pg_catalog."C",
    manifest text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL,
    content bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

COMMENT ON TABLE public.signature IS 'atomic container signatures; digest is over content, manifest is the digest of what is signed';

ALTER TABLE public.signature ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.signature_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.sync_run (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    repository bigint NOT NULL,
    spec jsonb NOT NULL,
    spec_hash text NOT NULL,
    trigger text NOT NULL,
    request text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    heartbeat_at timestamp with time zone,
    finished_at timestamp with time zone,
    attempts integer DEFAULT 0 NOT NULL,
    phase text DEFAULT 'Queued'::text NOT NULL,
    outcome text,
    reason text,
    message text,
    version bigint,
    added bigint DEFAULT 0 NOT NULL,
    removed bigint DEFAULT 0 NOT NULL,
    bytes_transferred bigint DEFAULT 0 NOT NULL,
    failed_tags jsonb DEFAULT '[]'::jsonb NOT NULL,
    failed_tag_count bigint DEFAULT 0 NOT NULL,
    tags_done bigint DEFAULT 0 NOT NULL,
    tags_total bigint DEFAULT 0 NOT NULL,
    manifests_done bigint DEFAULT 0 NOT NULL,
    manifests_total bigint DEFAULT 0 NOT NULL,
    blobs_done bigint DEFAULT 0 NOT NULL,
    blobs_total bigint DEFAULT 0 NOT NULL,
    bytes_done bigint DEFAULT 0 NOT NULL,
    bytes_total bigint DEFAULT 0 NOT NULL,
    CONSTRAINT sync_run_check CHECK (((finished_at IS NULL) = (outcome IS NULL))),
    CONSTRAINT sync_run_check1 CHECK (((finished_at IS NOT NULL) = (phase = 'Finished'::text))),
    CONSTRAINT sync_run_outcome_check CHECK ((outcome = ANY (ARRAY['Synced'::text, 'NoChange'::text, 'Partial'::text, 'Failed'::text]))),
    CONSTRAINT sync_run_phase_check CHECK ((phase = ANY (ARRAY['Queued'::text, 'Checking'::text, 'Listing'::text, 'Comparing'::text, 'Downloading'::text, 'Committing'::text, 'Finished'::text]))),
    CONSTRAINT sync_run_trigger_check CHECK ((trigger = ANY (ARRAY['Created'::text, 'SpecChanged'::text, 'Scheduled'::text, 'Requested'::text, 'Retry'::text])))
);

CREATE TABLE public.tag (
    repository bigint NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    manifest bigint NOT NULL,
    added bigint NOT NULL,
    removed bigint,
    CONSTRAINT tag_check CHECK ((removed > added))
);

CREATE TABLE public.upload (
    id text NOT NULL,
    repository bigint NOT NULL,
    subject text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    touched_at timestamp with time zone DEFAULT now() NOT NULL,
    "offset" bigint DEFAULT 0 NOT NULL,
    sha256 text,
    object_key text,
    multipart text,
    part_etags text[] DEFAULT '{}'::text[] NOT NULL,
    part_bytes bigint DEFAULT 0 NOT NULL,
    tail bytea,
    tail_key text,
    writer text,
    writer_until timestamp with time zone,
    CONSTRAINT upload_check CHECK (((multipart IS NULL) = (object_key IS NULL))),
    CONSTRAINT upload_check1 CHECK ((num_nonnulls(tail, tail_key) <= 1)),
    CONSTRAINT upload_check2 CHECK ((part_bytes <= "offset")),
    CONSTRAINT upload_offset_check CHECK (("offset" >= 0)),
    CONSTRAINT upload_tail_check CHECK ((octet_length(tail) <= 32768))
);

COMMENT ON COLUMN public.upload.repository IS 'an upload is known to nobody who came to it by another repository''s name';

COMMENT ON COLUMN public.upload.sha256 IS 'hex digest of all bytes up to offset; null: not known, since a hash cannot go on in another process';

COMMENT ON COLUMN public.upload.part_bytes IS 'bytes in parts; the rest up to offset is in tail or tail_key';

COMMENT ON COLUMN public.upload.writer IS 'the request that writes at the moment, until writer_until';

CREATE TABLE public.version (
    repository bigint NOT NULL,
    number bigint NOT NULL,
    base bigint NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    cause_kind text NOT NULL,
    cause_name text NOT NULL,
    is_step boolean DEFAULT false NOT NULL,
    withdrawn boolean DEFAULT false NOT NULL,
    added_tags bigint NOT NULL,
    removed_tags bigint NOT NULL,
    added_manifests bigint NOT NULL,
    removed_manifests bigint NOT NULL,
    added_blobs bigint NOT NULL,
    removed_blobs bigint NOT NULL,
    added_signatures bigint NOT NULL,
    removed_signatures bigint NOT NULL,
    tags bigint NOT NULL,
    manifests bigint NOT NULL,
    indexes bigint NOT NULL,
    blobs bigint NOT NULL,
    signatures bigint NOT NULL,
    size bigint NOT NULL,
    CONSTRAINT version_check CHECK ((base < number)),
    CONSTRAINT version_number_check CHECK ((number > 0))
);

COMMENT ON COLUMN public.version.is_step IS 'a push soon followed by another: not counted by retention, dropped first';

COMMENT ON COLUMN public.version.withdrawn IS 'made by an explicit delete: what it removed is not served for pullGrace';

ALTER TABLE ONLY public.base_path_claim
    ADD CONSTRAINT base_path_claim_pkey PRIMARY KEY (path);

ALTER TABLE ONLY public.blob
    ADD CONSTRAINT blob_digest_key UNIQUE (digest);

ALTER TABLE ONLY public.blob_origin
    ADD CONSTRAINT blob_origin_pkey PRIMARY KEY (blob, origin, name);

ALTER TABLE ONLY public.blob
    ADD CONSTRAINT blob_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.distribution
    ADD CONSTRAINT distribution_base_path_key UNIQUE (base_path);

ALTER TABLE ONLY public.distribution
    ADD CONSTRAINT distribution_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.ledger
    ADD CONSTRAINT ledger_pkey PRIMARY KEY (repository, kind, name, hash);

ALTER TABLE ONLY public.manifest_blob
    ADD CONSTRAINT manifest_blob_pkey PRIMARY KEY (manifest, "position");

ALTER TABLE ONLY public.manifest_child
    ADD CONSTRAINT manifest_child_pkey PRIMARY KEY (parent, "position");

ALTER TABLE ONLY public.manifest
    ADD CONSTRAINT manifest_digest_key UNIQUE (digest);

ALTER TABLE ONLY public.manifest
    ADD CONSTRAINT manifest_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.object
    ADD CONSTRAINT object_pkey PRIMARY KEY (key);

ALTER TABLE ONLY public.remote_credential
    ADD CONSTRAINT remote_credential_pkey PRIMARY KEY (remote);

ALTER TABLE ONLY public.remote
    ADD CONSTRAINT remote_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.repository_blob
    ADD CONSTRAINT repository_blob_pkey PRIMARY KEY (repository, blob);

ALTER TABLE ONLY public.repository_manifest
    ADD CONSTRAINT repository_manifest_pkey PRIMARY KEY (manifest, repository, added);

ALTER TABLE ONLY public.repository
    ADD CONSTRAINT repository_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.repository_signature
    ADD CONSTRAINT repository_signature_pkey PRIMARY KEY (signature, repository, added);

ALTER TABLE ONLY public.repository
    ADD CONSTRAINT repository_uuid_key UNIQUE (uuid);

ALTER TABLE ONLY public.schema_migrations
    ADD CONSTRAINT schema_migrations_pkey PRIMARY KEY (version);

ALTER TABLE ONLY public.signature
    ADD CONSTRAINT signature_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.signature
    ADD CONSTRAINT signature_unique UNIQUE (manifest, digest, name);

ALTER TABLE ONLY public.sync_run
    ADD CONSTRAINT sync_run_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.tag
    ADD CONSTRAINT tag_pkey PRIMARY KEY (repository, name, added);

ALTER TABLE ONLY public.upload
    ADD CONSTRAINT upload_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.version
    ADD CONSTRAINT version_pkey PRIMARY KEY (repository, number);

CREATE UNIQUE INDEX blob_object_key ON public.blob USING btree (object_key) WHERE (object_key IS NOT NULL);

CREATE INDEX distribution_namespace ON public.distribution USING btree (namespace);

CREATE INDEX distribution_public ON public.distribution USING btree (repository) WHERE (access = 'Public'::text);

CREATE INDEX distribution_repository ON public.distribution USING btree (repository);

CREATE INDEX manifest_blob_blob ON public.manifest_blob USING btree (blob);

CREATE INDEX manifest_blob_foreign ON public.manifest_blob USING btree (blob) WHERE is_foreign;

CREATE INDEX manifest_child_parent_digest ON public.manifest_child USING btree (digest, parent);

CREATE INDEX manifest_referrers ON public.manifest USING btree (subject) WHERE (subject IS NOT NULL);

CREATE INDEX object_leftover ON public.object USING btree (delete_after) WHERE (delete_after IS NOT NULL);

CREATE INDEX object_owner ON public.object USING btree (owner);

CREATE INDEX repository_blob_late ON public.repository_blob USING btree (repository, blob) WHERE is_late;

CREATE INDEX repository_blob_places ON public.repository_blob USING btree (blob, repository);

CREATE INDEX repository_blob_unused ON public.repository_blob USING btree (touched_at) WHERE (in_any = 0);

CREATE INDEX repository_deleted ON public.repository USING btree (purge_after) WHERE (deleted_at IS NOT NULL);

CREATE UNIQUE INDEX repository_live_name ON public.repository USING btree (namespace, name) WHERE (deleted_at IS NULL);

CREATE INDEX repository_manifest_added ON public.repository_manifest USING btree (repository, added);

CREATE UNIQUE INDEX repository_manifest_latest ON public.repository_manifest USING btree (repository, manifest) WHERE (removed IS NULL);

CREATE INDEX repository_manifest_removed ON public.repository_manifest USING btree (repository, removed) WHERE (removed IS NOT NULL);

CREATE UNIQUE INDEX repository_place ON public.repository USING btree ((((('r/'::text || namespace) || '/'::text) || name)) COLLATE "C") WHERE (deleted_at IS NULL);

CREATE INDEX repository_signature_added ON public.repository_signature USING btree (repository, added);

CREATE UNIQUE INDEX repository_signature_latest ON public.repository_signature USING btree (repository, signature) WHERE (removed IS NULL);

CREATE INDEX repository_signature_removed ON public.repository_signature USING btree (repository, removed) WHERE (removed IS NOT NULL);

CREATE INDEX repository_unprojected ON public.repository USING btree (id) WHERE ((deleted_at IS NULL) AND (latest <> projected));

CREATE UNIQUE INDEX sync_run_active ON public.sync_run USING btree (repository) WHERE (finished_at IS NULL);

CREATE INDEX sync_run_good ON public.sync_run USING btree (repository, created_at) WHERE (outcome = ANY (ARRAY['Synced'::text, 'NoChange'::text, 'Partial'::text]));

CREATE INDEX sync_run_history ON public.sync_run USING btree (repository, created_at);

CREATE INDEX sync_run_requests ON public.sync_run USING btree (repository, created_at) WHERE (request IS NOT NULL);

CREATE INDEX tag_added ON public.tag USING btree (repository, added);

CREATE UNIQUE INDEX tag_latest ON public.tag USING btree (repository, name) WHERE (removed IS NULL);

CREATE INDEX tag_of_manifest ON public.tag USING btree (manifest, repository) WHERE (removed IS NULL);

CREATE INDEX tag_removed ON public.tag USING btree (repository, removed) WHERE (removed IS NOT NULL);

CREATE INDEX upload_repository ON public.upload USING btree (repository);

CREATE INDEX upload_touched ON public.upload USING btree (touched_at);

ALTER TABLE ONLY public.blob_origin
    ADD CONSTRAINT blob_origin_blob_fkey FOREIGN KEY (blob) REFERENCES public.blob(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.distribution
    ADD CONSTRAINT distribution_base_path_fkey FOREIGN KEY (base_path) REFERENCES public.base_path_claim(path);

ALTER TABLE ONLY public.distribution
    ADD CONSTRAINT distribution_pinned FOREIGN KEY (repository, pinned) REFERENCES public.version(repository, number);

ALTER TABLE ONLY public.distribution
    ADD CONSTRAINT distribution_repository_fkey FOREIGN KEY (repository) REFERENCES public.repository(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.ledger
    ADD CONSTRAINT ledger_repository_fkey FOREIGN KEY (repository) REFERENCES public.repository(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.manifest_blob
    ADD CONSTRAINT manifest_blob_blob_fkey FOREIGN KEY (blob) REFERENCES public.blob(id);

ALTER TABLE ONLY public.manifest_blob
    ADD CONSTRAINT manifest_blob_manifest_fkey FOREIGN KEY (manifest) REFERENCES public.manifest(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.manifest_child
    ADD CONSTRAINT manifest_child_parent_fkey FOREIGN KEY (parent) REFERENCES public.manifest(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.remote_credential
    ADD CONSTRAINT remote_credential_remote_fkey FOREIGN KEY (remote) REFERENCES public.remote(uuid) ON DELETE CASCADE;

ALTER TABLE ONLY public.repository_blob
    ADD CONSTRAINT repository_blob_blob_fkey FOREIGN KEY (blob) REFERENCES public.blob(id);

ALTER TABLE ONLY public.repository_blob
    ADD CONSTRAINT repository_blob_repository_fkey FOREIGN KEY (repository) REFERENCES public.repository(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.repository_manifest
    ADD CONSTRAINT repository_manifest_manifest_fkey FOREIGN KEY (manifest) REFERENCES public.manifest(id);

ALTER TABLE ONLY public.repository_manifest
    ADD CONSTRAINT repository_manifest_repository_fkey FOREIGN KEY (repository) REFERENCES public.repository(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.repository_signature
    ADD CONSTRAINT repository_signature_repository_fkey FOREIGN KEY (repository) REFERENCES public.repository(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.repository_signature
    ADD CONSTRAINT repository_signature_signature_fkey FOREIGN KEY (signature) REFERENCES public.signature(id);

ALTER TABLE ONLY public.sync_run
    ADD CONSTRAINT sync_run_repository_fkey FOREIGN KEY (repository) REFERENCES public.repository(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.tag
    ADD CONSTRAINT tag_manifest_fkey FOREIGN KEY (manifest) REFERENCES public.manifest(id);

ALTER TABLE ONLY public.tag
    ADD CONSTRAINT tag_repository_fkey FOREIGN KEY (repository) REFERENCES public.repository(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.upload
    ADD CONSTRAINT upload_repository_fkey FOREIGN KEY (repository) REFERENCES public.repository(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.version
    ADD CONSTRAINT version_repository_fkey FOREIGN KEY (repository) REFERENCES public.repository(id) ON DELETE CASCADE;

REVOKE ALL ON FUNCTION public.commit_content(p_repository bigint, p_cause_kind text, p_cause_name text, p_tag_names text[], p_tag_manifests bigint[], p_untag text[], p_manifests_add bigint[], p_manifests_remove bigint[], p_signatures_add bigint[], p_signatures_remove bigint[], p_ledger_kind text, p_ledger_name text, p_ledger_hash text, p_base bigint, p_is_step boolean, p_withdrawn boolean, OUT outcome text, OUT number bigint, OUT added_tags bigint, OUT removed_tags bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION public.commit_content(p_repository bigint, p_cause_kind text, p_cause_name text, p_tag_names text[], p_tag_manifests bigint[], p_untag text[], p_manifests_add bigint[], p_manifests_remove bigint[], p_signatures_add bigint[], p_signatures_remove bigint[], p_ledger_kind text, p_ledger_name text, p_ledger_hash text, p_base bigint, p_is_step boolean, p_withdrawn boolean, OUT outcome text, OUT number bigint, OUT added_tags bigint, OUT removed_tags bigint) TO entrepot_syncer;

REVOKE ALL ON FUNCTION public.delete_manifest(p_repository bigint, p_tag text, p_digest text) FROM PUBLIC;
GRANT ALL ON FUNCTION public.delete_manifest(p_repository bigint, p_tag text, p_digest text) TO entrepot_registry;

REVOKE ALL ON FUNCTION public.foreign_names(p_repository bigint, p_blob bigint, OUT in_latest integer, OUT in_any integer) FROM PUBLIC;
GRANT ALL ON FUNCTION public.foreign_names(p_repository bigint, p_blob bigint, OUT in_latest integer, OUT in_any integer) TO entrepot_syncer;

REVOKE ALL ON FUNCTION public.hide_blob(p_repository bigint, p_digest text) FROM PUBLIC;
GRANT ALL ON FUNCTION public.hide_blob(p_repository bigint, p_digest text) TO entrepot_registry;

REVOKE ALL ON FUNCTION public.image_size(p_repository bigint, p_manifest bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION public.image_size(p_repository bigint, p_manifest bigint) TO entrepot_registry;

REVOKE ALL ON FUNCTION public.link_pushed_blob(p_repository bigint, p_blob bigint, p_size bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION public.link_pushed_blob(p_repository bigint, p_blob bigint, p_size bigint) TO entrepot_registry;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.distribution TO entrepot_operator;
GRANT SELECT ON TABLE public.distribution TO entrepot_registry;
GRANT SELECT ON TABLE public.distribution TO entrepot_token;

GRANT SELECT,INSERT ON TABLE public.repository TO entrepot_operator;
GRANT SELECT ON TABLE public.repository TO entrepot_registry;
GRANT SELECT ON TABLE public.repository TO entrepot_token;
GRANT SELECT ON TABLE public.repository TO entrepot_syncer;

GRANT UPDATE(namespace) ON TABLE public.repository TO entrepot_operator;

GRANT UPDATE(name) ON TABLE public.repository TO entrepot_operator;

GRANT UPDATE(resource_uid) ON TABLE public.repository TO entrepot_operator;

GRANT UPDATE(last_number) ON TABLE public.repository TO entrepot_operator;

GRANT UPDATE(projected) ON TABLE public.repository TO entrepot_operator;

GRANT UPDATE(deleted_at) ON TABLE public.repository TO entrepot_operator;

GRANT UPDATE(purge_after) ON TABLE public.repository TO entrepot_operator;

GRANT UPDATE(is_mirror) ON TABLE public.repository TO entrepot_operator;

GRANT SELECT ON TABLE public.place TO entrepot_registry;
GRANT SELECT ON TABLE public.place TO entrepot_token;

REVOKE ALL ON FUNCTION public.push_manifest(p_repository bigint, p_cause text, p_tags text[], p_blobs_needed text[], p_manifests_needed text[], p_manifest jsonb, p_body bytea, p_blobs jsonb, p_children jsonb, OUT missing text[], OUT number bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION public.push_manifest(p_repository bigint, p_cause text, p_tags text[], p_blobs_needed text[], p_manifests_needed text[], p_manifest jsonb, p_body bytea, p_blobs jsonb, p_children jsonb, OUT missing text[], OUT number bigint) TO entrepot_registry;

REVOKE ALL ON FUNCTION public.seen_version(p_name text, p_history boolean, p_number bigint, p_change text) FROM PUBLIC;
GRANT ALL ON FUNCTION public.seen_version(p_name text, p_history boolean, p_number bigint, p_change text) TO entrepot_registry;

REVOKE ALL ON FUNCTION public.sign_manifest(p_repository bigint, p_manifest text, p_name text, p_digest text, p_content bytea, p_limit integer, OUT outcome text, OUT number bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION public.sign_manifest(p_repository bigint, p_manifest text, p_name text, p_digest text, p_content bytea, p_limit integer, OUT outcome text, OUT number bigint) TO entrepot_registry;

REVOKE ALL ON FUNCTION public.store_manifests(p_manifests jsonb, p_bodies bytea[], p_blobs jsonb, p_children jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION public.store_manifests(p_manifests jsonb, p_bodies bytea[], p_blobs jsonb, p_children jsonb) TO entrepot_syncer;

REVOKE ALL ON FUNCTION public.store_pushed_blob(p_repository bigint, p_digest text, p_size bigint, p_key text, p_inline bytea, p_upload text) FROM PUBLIC;
GRANT ALL ON FUNCTION public.store_pushed_blob(p_repository bigint, p_digest text, p_size bigint, p_key text, p_inline bytea, p_upload text) TO entrepot_registry;

REVOKE ALL ON FUNCTION public.writable_repository(p_repository bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION public.writable_repository(p_repository bigint) TO entrepot_registry;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.base_path_claim TO entrepot_operator;

GRANT SELECT ON TABLE public.blob TO entrepot_registry;
GRANT SELECT,INSERT ON TABLE public.blob TO entrepot_syncer;

GRANT SELECT(id) ON TABLE public.blob TO entrepot_keeper;

GRANT UPDATE(size) ON TABLE public.blob TO entrepot_syncer;

GRANT UPDATE(object_key) ON TABLE public.blob TO entrepot_syncer;
GRANT SELECT(object_key) ON TABLE public.blob TO entrepot_keeper;

GRANT UPDATE(inline) ON TABLE public.blob TO entrepot_syncer;

GRANT UPDATE(stored_at) ON TABLE public.blob TO entrepot_syncer;

GRANT UPDATE(touched_at) ON TABLE public.blob TO entrepot_syncer;

GRANT UPDATE(quarantined_at) ON TABLE public.blob TO entrepot_syncer;

GRANT SELECT,INSERT ON TABLE public.blob_origin TO entrepot_syncer;

GRANT UPDATE(seen_at) ON TABLE public.blob_origin TO entrepot_syncer;

GRANT SELECT ON TABLE public.ledger TO entrepot_operator;
GRANT SELECT ON TABLE public.ledger TO entrepot_syncer;
GRANT SELECT ON TABLE public.ledger TO entrepot_registry;

GRANT SELECT ON TABLE public.manifest TO entrepot_registry;
GRANT SELECT,INSERT ON TABLE public.manifest TO entrepot_syncer;

GRANT UPDATE(touched_at) ON TABLE public.manifest TO entrepot_syncer;
GRANT UPDATE(touched_at) ON TABLE public.manifest TO entrepot_registry;

GRANT SELECT ON TABLE public.manifest_blob TO entrepot_registry;
GRANT SELECT,INSERT ON TABLE public.manifest_blob TO entrepot_syncer;

GRANT SELECT ON TABLE public.manifest_child TO entrepot_registry;
GRANT SELECT,INSERT ON TABLE public.manifest_child TO entrepot_syncer;

GRANT SELECT,INSERT,DELETE ON TABLE public.object TO entrepot_syncer;
GRANT SELECT,INSERT ON TABLE public.object TO entrepot_registry;
GRANT SELECT,DELETE ON TABLE public.object TO entrepot_keeper;

GRANT UPDATE(owner) ON TABLE public.object TO entrepot_registry;

GRANT UPDATE(upload_id) ON TABLE public.object TO entrepot_syncer;
GRANT UPDATE(upload_id) ON TABLE public.object TO entrepot_registry;
GRANT UPDATE(upload_id) ON TABLE public.object TO entrepot_keeper;

GRANT UPDATE(delete_after) ON TABLE public.object TO entrepot_syncer;
GRANT UPDATE(delete_after) ON TABLE public.object TO entrepot_registry;
GRANT UPDATE(delete_after) ON TABLE public.object TO entrepot_keeper;

GRANT SELECT,INSERT,DELETE ON TABLE public.remote TO entrepot_operator;
GRANT SELECT ON TABLE public.remote TO entrepot_syncer;

GRANT UPDATE(namespace) ON TABLE public.remote TO entrepot_operator;

GRANT UPDATE(name) ON TABLE public.remote TO entrepot_operator;

GRANT UPDATE(url) ON TABLE public.remote TO entrepot_operator;

GRANT UPDATE(contact_at) ON TABLE public.remote TO entrepot_syncer;

GRANT UPDATE(contact_outcome) ON TABLE public.remote TO entrepot_syncer;

GRANT UPDATE(contact_message) ON TABLE public.remote TO entrepot_syncer;

GRANT INSERT,DELETE ON TABLE public.remote_credential TO entrepot_operator;
GRANT SELECT ON TABLE public.remote_credential TO entrepot_syncer;

GRANT SELECT(remote) ON TABLE public.remote_credential TO entrepot_operator;

GRANT SELECT(key_id),UPDATE(key_id) ON TABLE public.remote_credential TO entrepot_operator;

GRANT UPDATE(ciphertext) ON TABLE public.remote_credential TO entrepot_operator;

GRANT SELECT(updated_at),UPDATE(updated_at) ON TABLE public.remote_credential TO entrepot_operator;

GRANT SELECT ON TABLE public.repository_blob TO entrepot_registry;
GRANT SELECT,INSERT ON TABLE public.repository_blob TO entrepot_syncer;

GRANT UPDATE(size) ON TABLE public.repository_blob TO entrepot_syncer;

GRANT UPDATE(touched_at) ON TABLE public.repository_blob TO entrepot_syncer;
GRANT UPDATE(touched_at) ON TABLE public.repository_blob TO entrepot_registry;

GRANT SELECT ON TABLE public.repository_manifest TO entrepot_registry;
GRANT SELECT ON TABLE public.repository_manifest TO entrepot_syncer;

GRANT SELECT ON TABLE public.repository_signature TO entrepot_registry;

GRANT SELECT ON TABLE public.schema_migrations TO entrepot_operator;
GRANT SELECT ON TABLE public.schema_migrations TO entrepot_registry;
GRANT SELECT ON TABLE public.schema_migrations TO entrepot_token;
GRANT SELECT ON TABLE public.schema_migrations TO entrepot_syncer;
GRANT SELECT ON TABLE public.schema_migrations TO entrepot_keeper;

GRANT SELECT ON TABLE public.signature TO entrepot_registry;

GRANT SELECT,INSERT,DELETE ON TABLE public.sync_run TO entrepot_operator;
GRANT SELECT ON TABLE public.sync_run TO entrepot_syncer;

GRANT SELECT(id) ON TABLE public.sync_run TO entrepot_registry;
GRANT SELECT(id) ON TABLE public.sync_run TO entrepot_keeper;

GRANT SELECT(repository) ON TABLE public.sync_run TO entrepot_registry;

GRANT SELECT(trigger) ON TABLE public.sync_run TO entrepot_registry;

GRANT SELECT(request) ON TABLE public.sync_run TO entrepot_registry;

GRANT SELECT(created_at) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(started_at) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(started_at) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(heartbeat_at) ON TABLE public.sync_run TO entrepot_syncer;

GRANT UPDATE(finished_at) ON TABLE public.sync_run TO entrepot_operator;
GRANT UPDATE(finished_at) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(finished_at) ON TABLE public.sync_run TO entrepot_registry;
GRANT SELECT(finished_at) ON TABLE public.sync_run TO entrepot_keeper;

GRANT UPDATE(attempts) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(attempts) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(phase) ON TABLE public.sync_run TO entrepot_operator;
GRANT UPDATE(phase) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(phase) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(outcome) ON TABLE public.sync_run TO entrepot_operator;
GRANT UPDATE(outcome) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(outcome) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(reason) ON TABLE public.sync_run TO entrepot_operator;
GRANT UPDATE(reason) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(reason) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(message) ON TABLE public.sync_run TO entrepot_operator;
GRANT UPDATE(message) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(message) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(version) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(version) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(added) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(added) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(removed) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(removed) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(bytes_transferred) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(bytes_transferred) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(failed_tags) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(failed_tags) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(failed_tag_count) ON TABLE public.sync_run TO entrepot_syncer;
GRANT SELECT(failed_tag_count) ON TABLE public.sync_run TO entrepot_registry;

GRANT UPDATE(tags_done) ON TABLE public.sync_run TO entrepot_syncer;

GRANT UPDATE(tags_total) ON TABLE public.sync_run TO entrepot_syncer;

GRANT UPDATE(manifests_done) ON TABLE public.sync_run TO entrepot_syncer;

GRANT UPDATE(manifests_total) ON TABLE public.sync_run TO entrepot_syncer;

GRANT UPDATE(blobs_done) ON TABLE public.sync_run TO entrepot_syncer;

GRANT UPDATE(blobs_total) ON TABLE public.sync_run TO entrepot_syncer;

GRANT UPDATE(bytes_done) ON TABLE public.sync_run TO entrepot_syncer;

GRANT UPDATE(bytes_total) ON TABLE public.sync_run TO entrepot_syncer;

GRANT SELECT ON TABLE public.tag TO entrepot_registry;
GRANT SELECT ON TABLE public.tag TO entrepot_syncer;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.upload TO entrepot_registry;
GRANT DELETE ON TABLE public.upload TO entrepot_keeper;

GRANT SELECT(id) ON TABLE public.upload TO entrepot_keeper;

GRANT SELECT(touched_at) ON TABLE public.upload TO entrepot_keeper;

GRANT SELECT("offset") ON TABLE public.upload TO entrepot_keeper;

GRANT SELECT(object_key) ON TABLE public.upload TO entrepot_keeper;

GRANT SELECT(multipart) ON TABLE public.upload TO entrepot_keeper;

GRANT SELECT(tail_key) ON TABLE public.upload TO entrepot_keeper;

GRANT SELECT(writer_until) ON TABLE public.upload TO entrepot_keeper;

GRANT SELECT ON TABLE public.version TO entrepot_operator;
GRANT SELECT ON TABLE public.version TO entrepot_registry;
GRANT SELECT ON TABLE public.version TO entrepot_syncer;


