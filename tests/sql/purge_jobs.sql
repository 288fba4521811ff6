-- Finished jobs are deleted, a bounded batch a call.
begin;
\ir support/arrange.sql
select plan(17);

create function pg_temp.arrange_all()
returns void
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    perform procrastinate_defer_job(task, queue_name => case when task ~ 'e' then 'e' else 'o' end)
    from unnest(array['succeeded', 'failed', 'aborted', 'cancelled', 'todo']) as task;
    perform procrastinate_cancel_job(pg_temp.id('cancelled'));
    perform pg_temp.fetch(10);
    perform pg_temp.finish('succeeded');
    perform pg_temp.finish('failed', 'failed');
    perform pg_temp.finish('aborted', 'aborted');
    perform procrastinate_retry_job(pg_temp.id('todo'), 1);
    perform procrastinate_defer_job('doing', priority => 1);
    perform pg_temp.fetch();
end;
$$;

create function pg_temp.left_by(call text)
returns text
language plpgsql
as $$
begin
    perform pg_temp.arrange_all();
    execute format('select procrastinate_purge_jobs(%s)', call);
    return (select string_agg(job.task_name, ' ' order by job.id) from procrastinate_jobs as job);
end;
$$;

select is(pg_temp.left_by(given.call), given.remaining, given.fact)
from (
    values
    ($$'0'$$, 'todo doing', 'what waits and what runs is never purged'),
    ($$'1 hour'$$, 'succeeded failed aborted cancelled todo doing', 'what finished later is kept'),
    (
        $$'0', statuses => '{succeeded}'$$, 'failed aborted cancelled todo doing',
        'one status may be named'
    ),
    (
        $$'0', statuses => '{failed, aborted, cancelled}'$$, 'succeeded todo doing',
        'or several'
    ),
    ($$'0', statuses => '{}'$$, 'succeeded failed aborted cancelled todo doing', 'or none'),
    ($$'0', queue_name => 'e'$$, 'todo doing', 'a queue may be named'),
    (
        $$'0', queue_name => 'o'$$, 'succeeded failed aborted cancelled todo doing',
        'another queue is another'
    ),
    (
        $$'0', max_jobs => 1$$, 'succeeded failed aborted todo doing',
        'no more than max_jobs are deleted, the first that finished first'
    ),
    (
        $$'0', queue_name => 'e', statuses => '{failed}', max_jobs => 5$$,
        'succeeded aborted cancelled todo doing', 'all conditions hold at once'
    )
) as given (call, remaining, fact);

select pg_temp.arrange_all();

select is(procrastinate_purge_jobs('0', max_jobs => 3), 3::bigint, 'it says how many it deleted');

select is(
    procrastinate_purge_jobs('0', max_jobs => 3), 1::bigint, 'the next call deletes the rest'
);

select is(procrastinate_purge_jobs('0', max_jobs => 3), 0::bigint, 'until nothing is left');

select lives_ok(
    $$select procrastinate_purge_jobs('1000 years')$$, 'nothing is older than a thousand years'
);

select throws_ok(
    format($$select procrastinate_purge_jobs('0', statuses => '{%s}')$$, status),
    '22023',
    null,
    format('a job that is %s cannot be purged', status)
)
from unnest(array['todo', 'doing', 'aborting', 'no status']) as status;

select * from finish();
rollback;
