-- What the token service asks.

-- name: find_distributions
-- The distributions at these paths, with who may read there and the repository that rights are asked for.
select d.base_path, d.uuid, d.access, d.namespace, d.name
from distribution d
join repository r on r.id = d.repository and r.deleted_at is null
where d.base_path = any (:names::text[]);
