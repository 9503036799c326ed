-- migrate:up

-- The one way to a new version. Everything that changes a repository calls it, in a transaction of its own or of the caller's:
-- it locks the repository's row, works out set-wise what really changes, writes the ranges, the blob counters, the version and the
-- ledger, or nothing at all. It runs with the owner's rights; the parts may call it, and cannot write versions otherwise.
--
-- Errors (SQLSTATE): EN001 the repository does not exist or is deleted; EN002 the latest version is not the expected base;
-- EN003 a tag points at a manifest that is not in the repository; EN004 a manifest names a blob that is not linked to the
-- repository; EN005 a manifest to remove is still tagged or listed.
create function commit_content(
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
begin
    if cardinality(p_tag_names) + cardinality(p_manifests_add) + cardinality(p_manifests_remove) > 1000 then
        -- A plan that knows the arrays looks them up by hash; one made for any array compares element by element. Statistics
        -- lag behind a large sync, and a nested loop chosen from old ones takes minutes where a hash join takes milliseconds.
        perform set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_nestloop', 'off', true);
    end if;
    select * into repo from repository r where r.id = p_repository for update;
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
    signatures_out := array(
        select s.signature from repository_signature s
        where s.repository = p_repository and s.removed is null
            and s.signature = any (p_signatures_remove) and s.signature <> all (p_signatures_add)
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
        ) or exists (
            select from manifest_child c join repository_manifest p on p.manifest = c.parent
            where c.digest = m.digest and p.repository = p_repository and p.removed is null
                and p.manifest <> all (manifests_out)
        ) limit 1;
    if found then
        raise exception 'manifest % is still tagged or listed', offender using errcode = 'EN005';
    end if;

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
        coalesce(previous.blobs, 0) + change.added_blobs - change.removed_blobs,
        coalesce(previous.signatures, 0) + cardinality(signatures_in) - cardinality(signatures_out),
        coalesce(previous.size, 0) + change.size
    );
    update repository r set latest = new_number, last_number = new_number where r.id = p_repository;
    outcome := 'Changed';
    number := new_number;
    if p_ledger_kind is not null then
        insert into ledger (repository, kind, name, hash, outcome, version)
            values (p_repository, p_ledger_kind, p_ledger_name, p_ledger_hash, outcome, new_number);
    end if;
end
$$;
revoke all on function commit_content from public;

-- migrate:down
drop function commit_content;
