-- In a repeatable read transaction jobs can be deferred and changed, but not fetched.
begin;
set transaction_isolation = 'repeatable read';
\ir support/arrange.sql
select plan(12);

select throws_ok(statement, '25001', null, statement || ' is refused')
from unnest(array[
    'select * from procrastinate_fetch_jobs(pg_temp.worker())',
    'select * from procrastinate_fetch_job(pg_temp.worker())',
    'select * from procrastinate_heartbeat(pg_temp.worker())',
    'select * from procrastinate_repair()'
]) as statement;

select isnt(
    (
        select coalesce(refusal.hint, '')
        from pg_temp.refusal(
            'select * from procrastinate_fetch_jobs(pg_temp.worker())'
        ) as refusal
    ),
    '',
    'the hint says how to call it'
);

select lives_ok(given.statement, given.fact)
from (
    values
    ($$select procrastinate_defer_job('t', lock => 'x')$$, 'a job can be deferred'),
    (
        $$select procrastinate_defer_jobs('[{"task_name": "u", "queueing_lock": "once"}]')$$,
        'a batch can be deferred'
    ),
    ('select * from procrastinate_rescue_jobs()', 'jobs can be rescued'),
    ($$select procrastinate_cancel_job(pg_temp.id('u'))$$, 'a job can be cancelled'),
    ($$select procrastinate_pause_queue('mail')$$, 'a queue can be paused'),
    ($$select procrastinate_purge_jobs('0')$$, 'jobs can be purged'),
    ($$delete from procrastinate_jobs$$, 'jobs can be deleted')
) as given (statement, fact);

select * from finish();
rollback;
