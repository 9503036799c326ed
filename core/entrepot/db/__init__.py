"""PostgreSQL: the source of truth for content.

`migrations/` makes the schema (dbmate), `queries/` holds every statement (aiosql, one file a part), `pool` opens connections, and
one module a part gives each statement a typed method. Versions are written by `content.commit` alone, which calls the database's own
function `commit_content`.
"""
