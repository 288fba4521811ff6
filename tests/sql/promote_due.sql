-- Jobs whose time has come can be fetched, and a worker can ask how long until then.
begin;
\ir support/arrange.sql
select plan(19);

select is(procrastinate_next_due(), null, 'nothing is due when nothing is there');

select procrastinate_defer_job('now');

select is(procrastinate_next_due(), null, 'a job without schedule is not waited for');

select procrastinate_defer_job(
    'mail', queue_name => 'mail', scheduled_at => clock_timestamp() + interval '1 hour'
);
select procrastinate_defer_job(
    'slow', queue_name => 'slow', scheduled_at => clock_timestamp() + interval '2 hours'
);

select ok(
    procrastinate_next_due(asked.queue_names)
    between asked.hours - interval '1 minute' and asked.hours,
    asked.fact
)
from (
    values
    (null::text[], interval '1 hour', 'the next due job of all queues is the earliest'),
    ('{mail}', interval '1 hour', 'the next due job of a queue is its own'),
    ('{slow}', interval '2 hours', 'that of another queue is another'),
    ('{slow, mail, default}', interval '1 hour', 'that of several queues is the earliest of them')
) as asked (queue_names, hours, fact);

select is(
    procrastinate_next_due(array['default']), null, 'a queue without scheduled jobs waits for none'
);

select is(procrastinate_next_due('{}'), null, 'no queue at all waits for none');

select procrastinate_cancel_job(pg_temp.id('mail'));

select ok(
    procrastinate_next_due() > interval '1 hour', 'a cancelled job is not waited for'
);

select procrastinate_defer_job(
    'soon', queue_name => 'soon', scheduled_at => clock_timestamp() + interval '0.1 seconds'
);
select pg_sleep(0.15);

select is(procrastinate_next_due(), interval '0', 'a job that is due is due at once, never less');

-- In their turn.

delete from procrastinate_jobs;
select procrastinate_defer_job('third', scheduled_at => clock_timestamp() + interval '0.7 seconds');
select procrastinate_defer_job('first', scheduled_at => clock_timestamp() + interval '0.5 seconds');
select procrastinate_defer_job(
    'second', scheduled_at => clock_timestamp() + interval '0.6 seconds'
);
select procrastinate_defer_job(
    'urgent', priority => 1, scheduled_at => clock_timestamp() + interval '0.7 seconds'
);
select procrastinate_defer_job('tomorrow', scheduled_at => clock_timestamp() + interval '1 day');
select procrastinate_defer_job('ready');

select is(pg_temp.fetch(10), 'ready', 'only what is not scheduled runs at first');

select pg_sleep(0.75);

select is(
    pg_temp.fetch(10, array['default']), 'urgent first second third',
    'jobs that fell due take their turn by priority, then by when they became runnable'
);

select is(
    (pg_temp.job('second')).scheduled_at is not null, true,
    'a job that was promoted still says for when it was scheduled'
);

-- A retry is a schedule too.

delete from procrastinate_jobs;
select procrastinate_defer_job('retried');
select pg_temp.fetch();
select procrastinate_retry_job(pg_temp.id('retried'), 1, '0.5 seconds');

select ok(procrastinate_next_due() > interval '0', 'a job that waits for a retry is due then');

select is(pg_temp.fetch(), '', 'it is not fetched before');

select pg_sleep(0.55);

select is(pg_temp.fetch(), 'retried', 'it is fetched then');

-- With a lock.

delete from procrastinate_jobs;
select procrastinate_defer_job(
    'first', lock => 'x', scheduled_at => clock_timestamp() + interval '0.5 seconds'
);
select procrastinate_defer_job('second', lock => 'x');
select procrastinate_defer_job(
    'third', lock => 'x', scheduled_at => clock_timestamp() + interval '0.5 seconds'
);

select is(pg_temp.fetch(10), '', 'the first of the lock is waited for');

select pg_sleep(0.55);

select is(
    pg_temp.drain(), 'first, second, third', 'jobs that fell due take their place in their lock'
);

-- The whole queue does not wait for those who ask.

delete from procrastinate_jobs;
select procrastinate_defer_job('due', scheduled_at => clock_timestamp() + interval '0.1 seconds');
select pg_sleep(0.15);
select procrastinate_heartbeat(pg_temp.worker());

select is(procrastinate_next_due(), null, 'a heartbeat promotes what is due');

select * from finish();
rollback;
