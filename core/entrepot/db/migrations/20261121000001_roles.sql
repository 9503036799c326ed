-- migrate:up
-- One role a part. The set-up Job makes them with LOGIN and a password before this runs; where nobody has (tests, a first
-- look by hand) they are made without LOGIN, so that the grants below always have something to refer to.
do $$
declare
    part text;
begin
    foreach part in array array['operator', 'registry', 'token', 'syncer', 'keeper'] loop
        if not exists (select from pg_roles where rolname = 'entrepot_' || part) then
            execute format('create role %I nologin', 'entrepot_' || part);
        end if;
    end loop;
exception
    when duplicate_object or unique_violation then null; -- another database of this server is being migrated at the same time
end
$$;

-- migrate:down
-- Roles belong to the server, not to this database: they stay.
