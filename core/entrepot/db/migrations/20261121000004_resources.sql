-- migrate:up
-- What the parts tell one another. The custom resources remain the wish; these rows are what registry, token service and
-- syncer, which do not speak to the Kubernetes API, need of it.

create table remote (
    uuid uuid primary key,
    namespace text not null,
    name text not null,
    url text not null,
    contact_at timestamptz,
    contact_outcome text,
    contact_message text
);
comment on column remote.uuid is 'the UID of the Remote';
comment on column remote.contact_outcome is 'Reachable, or the reason of the failure, as the last run that spoke to it found';

-- AES-256-GCM: nonce || ciphertext || tag; associated data is the remote's uuid, a newline and the URL's origin.
create table remote_credential (
    remote uuid primary key references remote on delete cascade,
    key_id text not null,
    ciphertext bytea not null,
    updated_at timestamptz not null default now()
);

create table base_path_claim (
    path text collate "C" primary key,
    namespace text not null,
    distribution uuid,
    claimed_at timestamptz not null default now(),
    released_at timestamptz,
    check ((distribution is null) = (released_at is not null))
);

create table distribution (
    uuid uuid primary key,
    namespace text not null,
    name text not null,
    base_path text collate "C" not null unique references base_path_claim (path),
    repository bigint not null references repository on delete cascade,
    pinned bigint,
    access text not null check (access in ('Public', 'Authenticated', 'Private')),
    redirect boolean,
    created_at timestamptz not null default now()
);
create index distribution_repository on distribution (repository);

create table sync_run (
    id uuid primary key default gen_random_uuid(),
    repository bigint not null references repository on delete cascade,
    spec jsonb not null,
    spec_hash text not null,
    trigger text not null check (trigger in ('Created', 'SpecChanged', 'Scheduled', 'Requested', 'Retry')),
    request text,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    heartbeat_at timestamptz,
    finished_at timestamptz,
    attempts int not null default 0,
    phase text not null default 'Queued' check (phase in ('Queued', 'Checking', 'Listing', 'Comparing', 'Downloading', 'Committing', 'Finished')),
    outcome text check (outcome in ('Synced', 'NoChange', 'Partial', 'Failed')),
    reason text,
    message text,
    version bigint,
    added bigint not null default 0,
    removed bigint not null default 0,
    bytes_transferred bigint not null default 0,
    failed_tags jsonb not null default '[]',
    failed_tag_count bigint not null default 0,
    tags_done bigint not null default 0,
    tags_total bigint not null default 0,
    manifests_done bigint not null default 0,
    manifests_total bigint not null default 0,
    blobs_done bigint not null default 0,
    blobs_total bigint not null default 0,
    bytes_done bigint not null default 0,
    bytes_total bigint not null default 0,
    check ((finished_at is null) = (outcome is null)),
    check ((finished_at is not null) = (phase = 'Finished'))
);
create unique index sync_run_active on sync_run (repository) where finished_at is null;
create index sync_run_history on sync_run (repository, created_at);
create index sync_run_requests on sync_run (repository, created_at) where request is not null;
create index sync_run_good on sync_run (repository, created_at) where outcome in ('Synced', 'NoChange', 'Partial');

-- migrate:down
drop table sync_run, distribution, base_path_claim, remote_credential, remote;
