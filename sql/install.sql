-- Install procrastinate-sql into the current schema: psql -f sql/install.sql
--
-- This file is the table of contents. It needs no superuser and no extension, runs in one
-- transaction, and stops at the first error. Another schema than public:
--   psql -c 'create schema jobs' && PGOPTIONS='-c search_path=jobs' psql -f sql/install.sql

\set ON_ERROR_STOP on
begin;

\ir before_install.sql

-- What is stored, and what must be true of it whoever writes it.
\ir types.sql
\ir tables.sql
\ir errors.sql
\ir notify.sql
\ir job_triggers.sql

-- Create jobs.
\ir declare_task.sql
\ir defer_job.sql
\ir defer_jobs.sql

-- Fetch jobs.
\ir floors.sql
\ir levels.sql
\ir sweeps.sql
\ir lock_events.sql
\ir lock_floors.sql
\ir lock_heads.sql
\ir settle_locks.sql
\ir promote_due.sql
\ir pick_jobs.sql
\ir admission.sql
\ir fetch_jobs.sql

-- End runs.
\ir finish_job.sql
\ir finish_jobs.sql
\ir succeed_jobs.sql
\ir fail_job.sql
\ir retry_job.sql
\ir release_jobs.sql

-- A worker's life.
\ir register_worker.sql
\ir rescue_jobs.sql
\ir heartbeat.sql

-- What people do.
\ir cancel_job.sql
\ir rerun_job.sql
\ir get_job.sql
\ir pause_queue.sql
\ir purge_jobs.sql
\ir repair.sql

\ir schema_version.sql
\ir privileges.sql

commit;
