-- Bring the current schema to the newest version: psql -f migrations/upgrade.sql
--
-- From any version, or from none.
-- Each migration is a transaction of its own: one that fails leaves what the one before made.

\set ON_ERROR_STOP on
\set QUIET on

begin;
\ir begin_migration.sql
\if :need_1
\ir 0001_initial.sql
\echo applied 0001_initial
\endif
commit;

select procrastinate_schema_version() as version \gset
\echo schema version :version
