-- name: insert_repository^
-- A new repository; none if the name was taken meanwhile. last_number keeps numbers that resources have shown from coming again.
insert into repository (namespace, name, resource_uid, last_number)
values (:namespace, :name, :resource_uid, :last_number)
on conflict (namespace, name) where deleted_at is null do nothing
returning id, uuid, namespace, name, resource_uid, latest, last_number, projected, is_mirror, deleted_at;

-- name: live_repository^
-- The repository of a name.
select id, uuid, namespace, name, resource_uid, latest, last_number, projected, is_mirror, deleted_at
from repository where namespace = :namespace and name = :name and deleted_at is null;

-- name: own_repository^
-- The newest repository that a resource had, living or deleted.
select id, uuid, namespace, name, resource_uid, latest, last_number, projected, is_mirror, deleted_at
from repository where resource_uid = :resource_uid and namespace = :namespace order by id desc limit 1;

-- name: deleted_repository^
-- A deleted repository of a namespace, whose content is still there.
select id, uuid, namespace, name, resource_uid, latest, last_number, projected, is_mirror, deleted_at
from repository where uuid = :uuid and namespace = :namespace and deleted_at is not null;

-- name: take_repository^
-- Gives a repository, living or deleted, to a resource; none if the name is another's.
update repository r set name = :name, resource_uid = :resource_uid, deleted_at = null, purge_after = null
where r.id = :repository and r.namespace = :namespace
    and not exists (
        select from repository o
        where o.namespace = r.namespace and o.name = :name and o.deleted_at is null and o.id <> r.id
    )
returning id, uuid, namespace, name, resource_uid, latest, last_number, projected, is_mirror, deleted_at;

-- name: delete_repository!
-- The tombstone: content stays until purge_after.
update repository set deleted_at = now(), purge_after = now() + :grace::interval
where id = :repository and deleted_at is null;

-- name: set_mirror!
-- Whether clients may write. This waits for writes that are under way; later ones see it.
update repository set is_mirror = :is_mirror where id = :repository and is_mirror <> :is_mirror;

-- name: raise_number!
-- Numbers that resources have shown are not given again.
update repository set last_number = :floor where id = :repository and last_number < :floor;

-- name: set_projected!
-- The resources show this version now; one made meanwhile stays to be shown.
update repository set projected = :number where id = :repository and projected <> :number;

-- name: unprojected_repositories
-- Repositories that got a version since the resources were written last.
select namespace, name, latest from repository where deleted_at is null and latest <> projected order by id limit :maximum;

-- name: version^
-- One version of a repository.
select number, base, created_at, cause_kind, cause_name, is_step, added_tags, removed_tags, added_manifests, removed_manifests,
    added_blobs, removed_blobs, added_signatures, removed_signatures, tags, manifests, indexes, blobs, signatures, size
from version where repository = :repository and number = :number;

-- name: find_version^
-- Whether a repository has a version, and its newest ones.
select exists (select from version where repository = :repository and number = :number) as found,
    array(select number from version where repository = :repository order by number desc limit :maximum) as newest;

-- name: shown_versions
-- The newest versions that are no steps, and those that a Distribution pins.
(
    select number, base, created_at, cause_kind, cause_name, is_step, added_tags, removed_tags, added_manifests, removed_manifests,
        added_blobs, removed_blobs, added_signatures, removed_signatures, tags, manifests, indexes, blobs, signatures, size
    from version where repository = :repository and not is_step order by number desc limit :window
)
union
(
    select number, base, created_at, cause_kind, cause_name, is_step, added_tags, removed_tags, added_manifests, removed_manifests,
        added_blobs, removed_blobs, added_signatures, removed_signatures, tags, manifests, indexes, blobs, signatures, size
    from version
    where repository = :repository and number in (select pinned from distribution where repository = :repository)
)
order by number;

-- name: shown_numbers
-- What `shown_versions` gives, as numbers only, for a page of repositories in the order of their ids.
select r.id, r.namespace, r.name,
    array(
        select number from (
            (select v.number from version v where v.repository = r.id and not v.is_step order by v.number desc limit :window)
            union
            (select d.pinned from distribution d join version v on v.repository = r.id and v.number = d.pinned where d.repository = r.id)
        ) shown order by number
    ) as numbers
from repository r where r.deleted_at is null and r.id > :after order by r.id limit :maximum;

-- name: serving_distributions
-- Which Distributions serve a repository, and which version they pin.
select name, pinned from distribution where repository = :repository order by name;

-- name: upsert_remote!
-- A Remote whose url changed loses what is known about its contacts: they were with another registry.
insert into remote (uuid, namespace, name, url) values (:uuid, :namespace, :name, :url)
on conflict (uuid) do update set namespace = excluded.namespace, name = excluded.name;

-- name: delete_moved_remote!
-- See upsert_remote; also those that had the name before.
delete from remote where (uuid = :uuid and url <> :url) or (namespace = :namespace and name = :name and uuid <> :uuid);

-- name: remote_contact^
-- What the last run that spoke to a Remote found.
select contact_at, contact_outcome, contact_message from remote where uuid = :uuid;

-- name: delete_remote!
-- The Remote is gone; its credentials go with it.
delete from remote where namespace = :namespace and name = :name;

-- name: remote_names
-- Every Remote that is known, by page.
select uuid, namespace, name from remote where uuid > :after order by uuid limit :maximum;

-- name: contacts_since
-- Remotes that were spoken to after a time.
select namespace, name, contact_at from remote where contact_at > :since order by contact_at limit :maximum;

-- name: upsert_credential!
-- The sealed credentials, written anew each time. The role cannot read them back, and naming excluded.ciphertext would be reading.
insert into remote_credential (remote, key_id, ciphertext) values (:remote, :key_id, :ciphertext)
on conflict (remote) do update set key_id = :key_id, ciphertext = :ciphertext, updated_at = now();

-- name: delete_credential!
-- A Remote without credentials.
delete from remote_credential where remote = :remote;

-- name: active_run^
-- The run of a repository that is not finished.
select id, spec_hash, trigger, request, created_at, started_at, heartbeat_at, phase, attempts, tags_done, tags_total,
    manifests_done, manifests_total, blobs_done, blobs_total, bytes_done, bytes_total
from sync_run where repository = :repository and finished_at is null;

-- name: last_run^
-- The run of a repository that was started last of those that are finished.
select id, spec_hash, trigger, request, created_at, started_at, finished_at, outcome, reason, message, version, added, removed,
    bytes_transferred, failed_tags, failed_tag_count
from sync_run where repository = :repository and finished_at is not null order by created_at desc limit 1;

-- name: run_history^
-- What scheduling needs beside the last run: the last good one, failures of this spec since then (up to 20), the last request.
select
    (
        select spec_hash from sync_run
        where repository = :repository and outcome in ('Synced', 'NoChange', 'Partial') order by created_at desc limit 1
    ) as good_hash,
    (
        select count(*) from (
            select from sync_run s
            where s.repository = :repository and s.spec_hash = :spec_hash and s.outcome in ('Failed', 'Partial')
                and s.created_at > coalesce(
                    (
                        select max(created_at) from sync_run
                        where repository = :repository and outcome in ('Synced', 'NoChange')
                    ),
                    '-infinity'
                )
            limit 20
        ) failed
    ) as failures,
    (
        select request from sync_run
        where repository = :repository and request is not null order by created_at desc limit 1
    ) as request;

-- name: insert_run^
-- A run, unless one is active or as many as may be run at once in all. What is left of deleted repositories holds no place.
insert into sync_run (repository, spec, spec_hash, trigger, request)
select :repository::bigint, :spec::jsonb, :spec_hash::text, :trigger::text, :request::text
where (
    select count(*) from sync_run s join repository r on r.id = s.repository
    where s.finished_at is null and r.deleted_at is null
) < :maximum::bigint
on conflict (repository) where finished_at is null do nothing
returning id;

-- name: fail_run!
-- Ends a run whose Job will not.
update sync_run set finished_at = now(), phase = 'Finished', outcome = 'Failed', reason = :reason, message = :message
where id = :run and finished_at is null;

-- name: fail_lost_runs
-- Ends runs that nobody can be working on any more: their Jobs, if there ever were any, have run out of time.
update sync_run set finished_at = now(), phase = 'Finished', outcome = 'Failed', reason = 'JobFailed', message = :message
where finished_at is null and greatest(created_at, heartbeat_at) < now() - :deadline::interval
returning id;

-- name: prune_runs!
-- Forgets finished runs. What scheduling goes by (see run_history) stays, however old it is.
delete from sync_run where id in (
    select id from sync_run where repository = :repository and finished_at is not null order by created_at desc offset :keep
)
and id is distinct from (
    select id from sync_run
    where repository = :repository and outcome in ('Synced', 'NoChange', 'Partial') order by created_at desc limit 1
)
and id is distinct from (
    select id from sync_run where repository = :repository and request is not null order by created_at desc limit 1
);

-- name: claim_path^
-- Takes a path for a Distribution: a free one, its own, one released by this namespace or long ago, or one held by an earlier
-- Distribution of the same name, which cannot live any more.
insert into base_path_claim (path, namespace, distribution) values (:path, :namespace, :distribution)
on conflict (path) do update set
    namespace = excluded.namespace,
    distribution = excluded.distribution,
    claimed_at = case when base_path_claim.distribution = excluded.distribution then base_path_claim.claimed_at else now() end,
    released_at = null
where base_path_claim.distribution = excluded.distribution
    or (
        base_path_claim.distribution is null
        and (base_path_claim.namespace = excluded.namespace or base_path_claim.released_at < now() - :reservation::interval)
    )
    or exists (
        select from distribution d
        where d.uuid = base_path_claim.distribution and d.uuid <> excluded.distribution
            and d.namespace = excluded.namespace and d.name = :name
    )
returning path;

-- name: path_holder^
-- Who has a path.
select c.namespace, c.distribution, c.released_at, d.name
from base_path_claim c left join distribution d on d.uuid = c.distribution where c.path = :path;

-- name: release_paths
-- Gives back the paths of a Distribution, but for the one it keeps ('' for none). They stay reserved to the namespace.
update base_path_claim set distribution = null, released_at = now()
where distribution = :distribution and path <> :keep
returning path;

-- name: withdraw_distribution
-- A Distribution that is not served; other ones of the name cannot live any more.
delete from distribution where uuid = :uuid or (namespace = :namespace and name = :name)
returning repository;

-- name: withdraw_others!
-- Earlier Distributions of the same name, and whoever was served at the path before.
delete from distribution
where uuid <> :uuid and ((namespace = :namespace and name = :name) or base_path = :base_path);

-- name: upsert_distribution^
-- A Distribution as it is served from now on; a row only if that changed anything.
insert into distribution (uuid, namespace, name, base_path, repository, access, pinned, redirect)
values (:uuid, :namespace, :name, :base_path, :repository, :access, :pinned, :redirect)
on conflict (uuid) do update set
    namespace = excluded.namespace, name = excluded.name, base_path = excluded.base_path, repository = excluded.repository,
    access = excluded.access, pinned = excluded.pinned, redirect = excluded.redirect
where (distribution.base_path, distribution.repository, distribution.access, distribution.pinned, distribution.redirect)
    is distinct from (excluded.base_path, excluded.repository, excluded.access, excluded.pinned, excluded.redirect)
returning uuid;

-- name: served_distribution^
-- What is served for a Distribution at present.
select d.base_path, d.repository, d.pinned, r.latest, r.name as repository_name
from distribution d join repository r on r.id = d.repository where d.uuid = :uuid;

-- name: distribution_names
-- Every Distribution that is known, by page.
select uuid, namespace, name from distribution where uuid > :after order by uuid limit :maximum;
