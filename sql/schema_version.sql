-- Which version of the schema this is; each migration replaces it.

create function procrastinate_schema_version()
returns integer
language sql
immutable
set search_path from current
as $$
    select 1
$$;

comment on function procrastinate_schema_version is
'Version of the schema: what a binding checks when it opens. Example: select '
'procrastinate_schema_version().';
