-- What the token service asks.

-- name: find_places
-- What these names stand for, who may read there, and the resource that rights to it hang on.
select p.name, p.uuid, p.access, p.resource, p.namespace, p.resource_name
from place p
where p.name = any (:names::text[]);

-- name: list_namespaces
-- Namespaces that serve something, in byte order.
select distinct d.namespace collate "C" as namespace
from distribution d
join repository r on r.id = d.repository and r.deleted_at is null
order by 1
limit :count;
