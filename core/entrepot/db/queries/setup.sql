-- Roles and databases take no parameters in their statements, so those are written by format(), whose %I and %L quote what is
-- put in; the set-up then executes the text. Passwords arrive as SCRAM verifiers, never as such.

-- name: lock!
-- One set-up at a time; held until unlock or the end of the session.
select pg_advisory_lock(:key::bigint);

-- name: unlock!
-- Ends lock.
select pg_advisory_unlock(:key::bigint);

-- name: role_exists$
-- Whether a role is there.
select exists (select from pg_roles where rolname = :role::text);

-- name: create_role_statement$
-- A role without any right, not even to log in.
select format('create role %I nologin', :role::text);

-- name: set_password_statement$
-- Lets a role log in with a password.
select format('alter role %I login password %L', :role::text, :verifier::text);

-- name: allow_roles_statement$
-- The owner makes the parts' roles.
select format('alter role %I createrole', :role::text);

-- name: database_exists$
-- Whether a database is there.
select exists (select from pg_database where datname = :database::text);

-- name: create_database_statement$
-- The database, owned by who will migrate it.
select format('create database %I owner %I encoding ''UTF8'' template template0', :database::text, :role::text);

-- name: close_database_statement$
-- Without this every role of the server may connect and make temporary tables.
select format('revoke connect, temporary on database %I from public', current_database());

-- name: allow_connect_statement$
-- Lets a role connect to the current database.
select format('grant connect on database %I to %I', current_database(), :role::text);
