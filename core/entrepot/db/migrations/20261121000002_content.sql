-- migrate:up

-- A repository outlives its resource: deleting the resource sets deleted_at, and the content stays until purge_after.
create table repository (
    id bigint generated always as identity primary key,
    uuid uuid not null default gen_random_uuid() unique,
    namespace text not null,
    name text not null,
    resource_uid uuid not null,
    latest bigint not null default 0,
    last_number bigint not null default 0,
    projected bigint not null default 0,
    created_at timestamptz not null default now(),
    deleted_at timestamptz,
    purge_after timestamptz,
    check (latest <= last_number),
    check ((deleted_at is null) = (purge_after is null))
);
comment on column repository.latest is 'number of the latest version; 0 while there is none';
comment on column repository.last_number is 'highest number ever given to a version; numbers never go back';
comment on column repository.projected is 'the latest version that the custom resources show';
create unique index repository_live_name on repository (namespace, name) where deleted_at is null;
create index repository_deleted on repository (purge_after) where deleted_at is not null;
create index repository_unprojected on repository (id) where deleted_at is null and latest <> projected;

-- Bytes are stored once for all repositories. A blob is stored when it has an object in S3 or is kept inline; size is what was
-- counted while the bytes were verified, so it is null until then: what a manifest claims stands in manifest_blob.
create table blob (
    id bigint generated always as identity primary key,
    digest text collate "C" not null unique,
    size bigint check (size >= 0),
    object_key text,
    inline bytea check (octet_length(inline) <= 32768),
    stored_at timestamptz,
    touched_at timestamptz not null default now(),
    quarantined_at timestamptz,
    check (num_nonnulls(object_key, inline) <= 1),
    check ((num_nonnulls(object_key, inline) = 1) = (size is not null and stored_at is not null)),
    check (inline is null or octet_length(inline) = size)
);
-- Partial on purpose: the columns of a full unique index are key columns, and updating one locks the row against the foreign keys
-- of everybody who links the same blob at that moment.
create unique index blob_object_key on blob (object_key) where object_key is not null;

-- Every object that was ever begun in S3, written before its first byte: what no blob points at is a leftover, found by query.
create table object (
    key text collate "C" primary key,
    owner text not null,
    upload_id text,
    created_at timestamptz not null default now(),
    delete_after timestamptz
);
comment on column object.owner is 'what began it: sync/<run id>, later upload/<upload id>';
comment on column object.upload_id is 'the multipart upload at S3, while one is open';
create index object_leftover on object (delete_after) where delete_after is not null;
create index object_owner on object (owner);

-- Where bytes came from: allows linking without fetching when the same origin answers for them again, and finding them again.
create table blob_origin (
    blob bigint not null references blob on delete cascade,
    origin text not null,
    name text not null,
    seen_at timestamptz not null default now(),
    primary key (blob, origin, name)
);

create table manifest (
    id bigint generated always as identity primary key,
    digest text collate "C" not null unique,
    media_type text not null,
    kind text not null,
    artifact_type text,
    subject text collate "C",
    os text,
    architecture text,
    variant text,
    annotations jsonb not null default '{}',
    labels jsonb not null default '{}',
    size bigint not null,
    body bytea not null,
    created_at timestamptz not null default now(),
    touched_at timestamptz not null default now(),
    check (size = octet_length(body))
);
create index manifest_referrers on manifest (subject) where subject is not null;

-- Children by digest, not by id: an index may list images that are not here (yet).
create table manifest_child (
    parent bigint not null references manifest on delete cascade,
    position int not null,
    digest text collate "C" not null,
    os text,
    architecture text,
    variant text,
    primary key (parent, position)
);
create index manifest_child_digest on manifest_child (digest);

create table manifest_blob (
    manifest bigint not null references manifest on delete cascade,
    position int not null,
    blob bigint not null references blob,
    role text not null check (role in ('config', 'layer')),
    media_type text not null,
    size bigint not null,
    is_foreign boolean not null default false,
    primary key (manifest, position)
);
comment on column manifest_blob.size is 'as the manifest claims; blob.size is what was verified';
create index manifest_blob_blob on manifest_blob (blob);

create table signature (
    id bigint generated always as identity primary key,
    digest text collate "C" not null unique,
    manifest text collate "C" not null,
    name text not null,
    content bytea not null,
    created_at timestamptz not null default now()
);
comment on table signature is 'atomic container signatures; digest is over content, manifest is the digest of what is signed';
create index signature_manifest on signature (manifest);

-- Versions. The content of version N is what has added <= N and (removed is null or removed > N); the latest is removed is null.
create table version (
    repository bigint not null references repository on delete cascade,
    number bigint not null check (number > 0),
    base bigint not null,
    created_at timestamptz not null default now(),
    cause_kind text not null,
    cause_name text not null,
    is_step boolean not null default false,
    withdrawn boolean not null default false,
    added_tags bigint not null,
    removed_tags bigint not null,
    added_manifests bigint not null,
    removed_manifests bigint not null,
    added_blobs bigint not null,
    removed_blobs bigint not null,
    added_signatures bigint not null,
    removed_signatures bigint not null,
    tags bigint not null,
    manifests bigint not null,
    indexes bigint not null,
    blobs bigint not null,
    signatures bigint not null,
    size bigint not null,
    primary key (repository, number),
    check (base < number)
);
comment on column version.is_step is 'a push soon followed by another: not counted by retention, dropped first';
comment on column version.withdrawn is 'made by an explicit delete: what it removed is not served for pullGrace';

create table tag (
    repository bigint not null references repository on delete cascade,
    name text collate "C" not null,
    manifest bigint not null references manifest,
    added bigint not null,
    removed bigint,
    primary key (repository, name, added),
    check (removed > added)
);
create unique index tag_latest on tag (repository, name) where removed is null;
create index tag_of_manifest on tag (manifest, repository) where removed is null;
create index tag_added on tag (repository, added);
create index tag_removed on tag (repository, removed) where removed is not null;

create table repository_manifest (
    repository bigint not null references repository on delete cascade,
    manifest bigint not null references manifest,
    added bigint not null,
    removed bigint,
    primary key (manifest, repository, added),
    check (removed > added)
);
create unique index repository_manifest_latest on repository_manifest (repository, manifest) where removed is null;
create index repository_manifest_added on repository_manifest (repository, added);
create index repository_manifest_removed on repository_manifest (repository, removed) where removed is not null;

create table repository_signature (
    repository bigint not null references repository on delete cascade,
    signature bigint not null references signature,
    added bigint not null,
    removed bigint,
    primary key (signature, repository, added),
    check (removed > added)
);
create unique index repository_signature_latest on repository_signature (repository, signature) where removed is null;
create index repository_signature_added on repository_signature (repository, added);
create index repository_signature_removed on repository_signature (repository, removed) where removed is not null;

-- A blob exists for a repository only through its row here. The counters say how many manifests name it.
create table repository_blob (
    repository bigint not null references repository on delete cascade,
    blob bigint not null references blob,
    size bigint not null,
    in_latest int not null default 0 check (in_latest >= 0),
    in_any int not null default 0 check (in_any >= in_latest),
    named boolean not null default false,
    hidden boolean not null default false,
    touched_at timestamptz not null default now(),
    left_at timestamptz,
    primary key (repository, blob)
);
comment on column repository_blob.in_latest is 'manifests of the latest version that name it';
comment on column repository_blob.in_any is 'manifests of any retained version that name it; never grants a read by itself';
comment on column repository_blob.named is 'a manifest here has named it at some time; until then it belongs to an upload in progress';
comment on column repository_blob.left_at is 'when it left the latest version other than by explicit delete';
create index repository_blob_blob on repository_blob (blob);
create index repository_blob_unused on repository_blob (touched_at) where in_any = 0;

-- Changes that must happen once: the outcome stands beside the change, in the same transaction.
create table ledger (
    repository bigint not null references repository on delete cascade,
    kind text not null,
    name text not null,
    hash text not null,
    outcome text not null,
    version bigint,
    created_at timestamptz not null default now(),
    primary key (repository, kind, name, hash)
);

-- migrate:down
drop table ledger, repository_blob, repository_signature, repository_manifest, tag, version, signature, manifest_blob, manifest_child,
    manifest, blob_origin, object, blob, repository;
