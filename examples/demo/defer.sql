-- Defer jobs from psql: psql -f defer.sql < files.csv, where each line is a path and a kind.

begin;

create temporary table file (path text, kind text) on commit drop;
\copy file from pstdin with (format csv)

-- A job for each file. Those with the same lock run one at a time, in the order of their ids.
select count(
    procrastinate_defer_job(
        'count_words', to_jsonb(file), queue_name => 'words', lock => file.kind
    )
) as jobs
from file \gset

-- One for tomorrow; on second thoughts it is cancelled.
select procrastinate_defer_job(
    'wait_for_ever', queue_name => 'later', scheduled_at => now() + interval '1 day'
) as job_id \gset
select procrastinate_cancel_job(:job_id) as status \gset

-- Now, and not before, they exist.
commit;

\echo Deferred from psql: :jobs jobs that count words, one for tomorrow (:status again).
