-- A worker claims what it is to run now: by priority, then first come first served.
begin;
\ir support/arrange.sql
select plan(39);

select is(pg_temp.fetch(10), '', 'an empty queue gives no row');

-- What a worker gets.

select procrastinate_declare_task('full', timeout => '5 minutes');
select procrastinate_defer_job(
    'full', '{"to": "ann"}', queue_name => 'mail', priority => 4, lock => 'ann',
    queueing_lock => 'once', scheduled_at => '2020-01-01 00:00:00+00'
);

select results_eq(
    'select * from procrastinate_fetch_jobs(pg_temp.worker())',
    $$values (
        pg_temp.id('full'), 'full', '{"to": "ann"}'::jsonb, 'mail', 4, 'ann', 'once',
        '2020-01-01 00:00:00+00'::timestamptz, 1, interval '5 minutes'
    )$$,
    'a fetched job has all that is needed to run it; its first attempt is 1'
);

select results_eq(
    $$
    select job.status::text, job.worker_id, job.attempts
    from procrastinate_jobs as job
    where job.task_name = 'full'
    $$,
    $$values ('doing', pg_temp.worker(), 0)$$,
    'a fetched job is running, and says on which worker'
);

select cmp_ok(
    clock_timestamp() - (pg_temp.job('full')).started_at, '<', interval '1 minute',
    'it says since when'
);

select is(pg_temp.fetch(10), '', 'a running job is not fetched again');

select is(pg_temp.fetch(10, worker_name => 'bob'), '', 'nor by another worker');

select procrastinate_retry_job(pg_temp.id('full'), 1);

select is(
    (select fetched.attempt from procrastinate_fetch_jobs(pg_temp.worker()) as fetched),
    2,
    'its next attempt is 2'
);

-- Order.

create function pg_temp.arrange_five()
returns void
language sql
as $$
    delete from procrastinate_jobs;
    select procrastinate_defer_job('low', priority => -1);
    select procrastinate_defer_job('a', queue_name => 'mail');
    select procrastinate_defer_job('b', queue_name => 'slow');
    select procrastinate_defer_job('high', queue_name => 'mail', priority => 5);
    select procrastinate_defer_job('c', queue_name => 'other');
$$;

create temporary table asked (queue_names text[], max_jobs integer, expected text, fact text);

insert into asked
values
(null, 10, 'high a b c low', 'higher priority comes first, then who came first'),
(null, 1, 'high', 'one job is one job'),
(null, 2, 'high a', 'no more than max_jobs are fetched'),
('{mail}', 10, 'high a', 'one queue gives its own jobs only'),
('{mail}', 1, 'high', 'one job of one queue is the first of it'),
('{slow}', 10, 'b', 'another queue gives its own'),
('{default}', 10, 'low', 'a job without queue is in the queue default'),
('{other, mail, slow}', 10, 'high a b c', 'several queues are merged, whatever their order'),
('{other, mail}', 2, 'high a', 'the merge is cut at max_jobs'),
('{slow, default}', 10, 'b low', 'a queue of lower priority comes after'),
('{mail, mail}', 10, 'high a', 'a queue that is named twice is one queue'),
('{unknown}', 10, '', 'a queue without jobs gives none'),
('{unknown, slow}', 10, 'b', 'nor does it hide the others'),
('{Mail}', 10, '', 'upper and lower case differ');

create function pg_temp.fetch_of_five(max_jobs integer, queue_names text[])
returns text
language plpgsql
as $$
begin
    perform pg_temp.arrange_five();
    return pg_temp.fetch(max_jobs, queue_names);
end;
$$;

select is(pg_temp.fetch_of_five(asked.max_jobs, asked.queue_names), asked.expected, asked.fact)
from asked;

select pg_temp.arrange_five();

select is(
    concat_ws(', ', pg_temp.fetch(2), pg_temp.fetch(2, worker_name => 'bob'), pg_temp.fetch(2)),
    'high a, b c, low',
    'workers share a queue: each job goes to one of them'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('j' || number) from generate_series(1, 500) as number;

select is(
    (select count(*) from procrastinate_fetch_jobs(pg_temp.worker(), max_jobs => 400)),
    400::bigint,
    'a fetch may be as large as one likes'
);

select is(
    (select count(*) from procrastinate_fetch_jobs(pg_temp.worker(), max_jobs => 400)),
    100::bigint,
    'it is as large as what is there'
);

select is(
    (
        select count(distinct job.id)
        from procrastinate_jobs as job
        where job.status = 'doing'
    ),
    500::bigint,
    'every job was fetched'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('j' || number, lock => 'lock ' || number)
from generate_series(10, 29) as number;

select is(
    pg_temp.fetch(100),
    (select string_agg('j' || number, ' ' order by number) from generate_series(10, 29) as number),
    'jobs of different locks are served first come first served, too'
);

-- Never fewer because the call had to tidy first.

delete from procrastinate_jobs;
select procrastinate_defer_job('t', lock => 'lock ' || number)
from generate_series(1, 450) as number;

select is(
    (select count(*) from procrastinate_fetch_jobs(pg_temp.worker(), max_jobs => 450)),
    450::bigint,
    'the first jobs of 450 locks come in one fetch'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('t', scheduled_at => clock_timestamp() + interval '0.2 seconds')
from generate_series(1, 450);
select pg_sleep(0.25);

select is(
    (select count(*) from procrastinate_fetch_jobs(pg_temp.worker(), max_jobs => 450)),
    450::bigint,
    'the 450 jobs that fell due come in one fetch'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('cancelled', lock => 'lock ' || number)
from generate_series(1, 450) as number;
select procrastinate_cancel_job(job.id) from procrastinate_jobs as job;
select procrastinate_defer_job('wanted', lock => 'wanted');

select is(
    pg_temp.fetch(), 'wanted', 'the locks of 450 cancelled jobs do not make a fetch come back empty'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('ready', lock => 'x');
select pg_temp.fetch();
select procrastinate_defer_job('next', lock => 'x');
select procrastinate_defer_job('free');
select pg_temp.finish('ready');

select is(
    pg_temp.fetch(2, array['default']), 'free next',
    'a job whose lock was released comes in the same fetch as one that was ready'
);

-- Heads of locks that are fetched beside ready jobs.

create function pg_temp.arrange_six()
returns void
language sql
as $$
    delete from procrastinate_jobs;
    select procrastinate_defer_job('ready'), procrastinate_defer_job('ready urgent', priority => 9);
    select procrastinate_defer_job('head', lock => 'h'), procrastinate_defer_job('follows', lock => 'h');
    select procrastinate_defer_job('head urgent', lock => 'u', priority => 5);
    select procrastinate_defer_job('head elsewhere', lock => 'e', queue_name => 'mail', priority => 7);
$$;

select pg_temp.arrange_six();

select is(
    pg_temp.fetch(10), 'ready urgent head elsewhere head urgent ready head',
    'they are claimed together, the more urgent first'
);

select pg_temp.arrange_six();

select is(
    pg_temp.fetch(3), 'ready urgent head elsewhere head urgent',
    'if there are more than are wanted, the most urgent are'
);

select pg_temp.arrange_six();

select is(
    pg_temp.fetch(10, array['default']), 'ready urgent head urgent ready head',
    'those in other queues stay'
);

-- Who may fetch, and how.

select throws_ok(
    'select * from procrastinate_fetch_jobs(-1)', 'PC004', null, 'an unknown worker gets no job'
);

select procrastinate_unregister_worker(pg_temp.worker('leaver'));

select throws_ok(
    $$select procrastinate_fetch_jobs(worker.id)
    from procrastinate_workers as worker where worker.name = 'leaver'$$,
    'PC004',
    null,
    'a worker that left gets no job'
);

select procrastinate_register_worker('frozen', '0.1 seconds', '0.3 seconds');
select pg_sleep(0.35);
select procrastinate_rescue_jobs();

select is(
    (
        select concat_ws(', ', refusal.code, substring(refusal.hint from 'register again'))
        from pg_temp.refusal(
            $$select procrastinate_fetch_jobs(worker.id)
            from procrastinate_workers as worker where worker.name = 'frozen'$$
        ) as refusal
    ),
    'PC004, register again',
    'a worker that was given up gets no job, and the hint to register again'
);

-- One job.

delete from procrastinate_jobs;
select procrastinate_defer_job('first', queue_name => 'mail');
select procrastinate_defer_job('second', queue_name => 'slow');

select results_eq(
    $$select fetched.task_name, fetched.attempt
    from procrastinate_fetch_job(pg_temp.worker(), array['slow']) as fetched$$,
    $$values ('second', 1)$$,
    'procrastinate_fetch_job gives one job of the queues that are named'
);

select results_eq(
    'select fetched.task_name from procrastinate_fetch_job(pg_temp.worker()) as fetched',
    array['first'],
    'procrastinate_fetch_job gives one job of any queue'
);

select is_empty(
    'select * from procrastinate_fetch_job(pg_temp.worker())',
    'procrastinate_fetch_job gives no row when there is no job'
);

select * from finish();
rollback;
