-- Floors of locks: where to look for the next job while all that has run lies, dead, before it.
begin;
\ir support/arrange.sql
select plan(36);

-- The entries of what this transaction has run are in the way as under a snapshot that is held.
create function pg_temp.run_through(lock_name text, jobs integer)
returns void
language plpgsql
as $$
begin
    for number in 1..jobs loop
        perform procrastinate_defer_job('run through', lock => lock_name);
    end loop;
    for number in 1..jobs loop
        perform pg_temp.fetch();
        perform pg_temp.finish('run through');
    end loop;
end;
$$;

-- How many entries a fetch passes.
create function pg_temp.passed(out fetched text, out entries bigint)
language plpgsql
as $$
begin
    entries := _procrastinate_lock_entries();
    fetched := pg_temp.fetch();
    entries := _procrastinate_lock_entries() - entries;
end;
$$;

create function pg_temp.floors(lock_name text)
returns setof procrastinate_lock_floors
language sql
as $$
    select noted.*
    from procrastinate_lock_floors as noted
    where
        noted.lock = lock_name
        and noted.era = pg_sequence_last_value('procrastinate_lock_era')
$$;

-- As if all transactions but this one had ended.
create function pg_temp.settle_ids()
returns void
language sql
as $$
    select setval('procrastinate_jobs_drawn', pg_sequence_last_value('procrastinate_jobs_id_seq'));
    select setval('procrastinate_jobs_settled', pg_sequence_last_value('procrastinate_jobs_id_seq'));
$$;

select procrastinate_declare_task('run through', keep_finished => interval '0');
select procrastinate_defer_job('before', lock => 'often run');
select is(pg_temp.fetch(), 'before', 'a job with a lock');
select pg_temp.finish('before');
select is_empty('table procrastinate_lock_floors', 'a lock that has run little has no floors');

select pg_temp.run_through('often run', 100);
select is(
    pg_sequence_last_value('procrastinate_lock_era') % 2, 1::bigint,
    'where it would have to pass much, an era of floors begins'
);
select is(
    array(select noted.priorities from pg_temp.floors('often run') as noted), array[array[0]],
    'a lock has a floor for each priority in use, once'
);

select procrastinate_defer_job('a', lock => 'often run');
select procrastinate_defer_job('b', lock => 'often run');
select pg_temp.settle_ids();
select is(passed.fetched, 'a', 'its next job is found') from pg_temp.passed() as passed;
select is(passed.fetched, '', 'one runs at a time') from pg_temp.passed() as passed;
select is(
    (select noted.holder_id from pg_temp.floors('often run') as noted), pg_temp.id('a'),
    'who holds the lock is noted'
);
select pg_temp.finish('a');
select ok(passed.fetched = 'b' and passed.entries < 20, 'without passing what has run')
from pg_temp.passed() as passed;
select pg_temp.finish('b');

-- Whatever comes to wait below a floor.

select procrastinate_defer_job('c', lock => 'often run');
insert into procrastinate_jobs (id, task_name, lock) values (-7, 'low id', 'often run');
select is(pg_temp.fetch(), 'low id', 'a job with a lower id goes first');
select is(pg_temp.fetch(), '', 'alone');
select pg_temp.finish('low id');

select procrastinate_defer_job('urgent', lock => 'often run', priority => 5);
select procrastinate_defer_job('later', lock => 'often run', priority => -5);
select is(pg_temp.fetch(), 'urgent', 'a priority that was not in use goes first');
select pg_temp.finish('urgent');
select is(
    array(select noted.priorities from pg_temp.floors('often run') as noted), array[array[5, 0]],
    'and has a floor then'
);

select procrastinate_rerun_job(pg_temp.id('low id'));
select is(pg_temp.fetch(), 'low id', 'a job that is run afresh goes first');
select procrastinate_retry_job(pg_temp.id('low id'), 2);
select is(pg_temp.fetch(), 'low id', 'and again, when it is retried');
select pg_temp.finish('low id');

select procrastinate_defer_job('d', lock => 'often run');
update procrastinate_jobs set priority = 9 where task_name = 'd';
select is(pg_temp.fetch(), 'd', 'a waiting job that a person makes urgent goes first');
select pg_temp.finish('d');

insert into procrastinate_jobs (id, task_name, lock, scheduled_at)
values (-8, 'mover', 'often run too', clock_timestamp() + interval '1 hour');
select pg_temp.settle();
update procrastinate_jobs set lock = 'often run', scheduled_at = null where task_name = 'mover';
select is(pg_temp.fetch(), 'mover', 'so does one that is moved to this lock');
select pg_temp.finish('mover');

select is(pg_temp.fetch(), 'c', 'and then those that waited');
select is(pg_temp.fetch(), '', 'alone');
select pg_temp.finish('c');

-- The head is not always let start.

select is(pg_temp.fetch(), 'later', 'a lower priority does not wait for one that has ended');
select pg_temp.finish('later');
insert into procrastinate_jobs (id, task_name, lock, scheduled_at)
values (-9, 'scheduled', 'often run', clock_timestamp() + interval '1 hour');
select procrastinate_defer_job('behind', lock => 'often run', priority => -5);
select is(pg_temp.fetch(), '', 'a job waits for one before it that is scheduled');
select procrastinate_cancel_job(pg_temp.id('scheduled'));
select is(pg_temp.fetch(), 'behind', 'until that is cancelled');
select pg_temp.finish('behind');

select procrastinate_defer_job('ready', lock => 'often run');
select pg_temp.settle();
insert into procrastinate_jobs (id, task_name, lock) values (-10, 'overtakes', 'often run');
select is(pg_temp.drain(), 'overtakes, ready', 'a ready job can be overtaken');

-- Whether a job that waits is the first.

create function pg_temp.is_first(task text, out is_first boolean, out entries bigint)
language plpgsql
as $$
declare
    job constant procrastinate_jobs := pg_temp.job(task);
begin
    entries := _procrastinate_lock_entries();
    is_first := _procrastinate_is_head(job.id, job.lock, job.priority);
    entries := _procrastinate_lock_entries() - entries;
end;
$$;

select pg_temp.run_through('a third', 100);
select pg_temp.settle_ids();
select pg_temp.run_through('a third', 1);
select procrastinate_defer_job(task, lock => 'a third') from unnest(array['one', 'two']) as task;
select pg_temp.settle();
select cmp_ok(
    (pg_temp.is_first('two')).entries, '<', 5::bigint, 'who asks does not pass what has run'
);
select is((pg_temp.is_first('one')).is_first, true, 'the first of its priority is');
select is((pg_temp.is_first('two')).is_first, false, 'another one is not');

select procrastinate_defer_job('more urgent', lock => 'a third', priority => 3);
select pg_temp.settle();
select is((pg_temp.is_first('one')).is_first, false, 'nor is one with a more urgent one beside it');
select is(pg_temp.drain(), 'more urgent, one, two', 'so they run in order');

-- Many priorities.

select procrastinate_defer_job('p' || number, lock => 'often run', priority => number)
from generate_series(101, 125) as number;
select is(
    pg_temp.drain(),
    (select string_agg('p' || number, ', ' order by number desc)
    from generate_series(101, 125) as number),
    'jobs of more than twenty priorities run in order'
);

select pg_temp.run_through('often run too', 50);
select is(
    (select count(*) from pg_temp.floors('often run too')), 1::bigint,
    'another lock gets floors of its own'
);
delete from procrastinate_lock_floors;
select procrastinate_defer_job('e', lock => 'often run too');
select is(pg_temp.fetch(), 'e', 'without its floors a lock is looked through from the start');
select pg_temp.finish('e');

-- Many edits.

select procrastinate_defer_job('edited', lock => 'often run too');
do $$
begin
    for number in 1..1050 loop
        update procrastinate_jobs set priority = number where task_name = 'edited';
        perform pg_temp.settle();
    end loop;
end;
$$;
select is(
    pg_sequence_last_value('procrastinate_lock_era') % 2, 0::bigint,
    'where jobs are edited all the time looks begin at the start'
);
select is(pg_temp.fetch(), 'edited', 'and find the job');
select pg_temp.finish('edited');
select _procrastinate_set_floor('until no floors of locks', 1);

-- The end of an era.

select _procrastinate_set_floor('until locks', 1);
select pg_temp.run_through('often run too', 1);
select is(
    pg_sequence_last_value('procrastinate_lock_era') % 2, 1::bigint,
    'while there is still much to pass the era goes on'
);
select _procrastinate_set_floor('until locks', 1);
delete from procrastinate_lock_floors;
select procrastinate_defer_job('f', lock => 'little used');
select is(pg_temp.fetch(), 'f', 'a job of a lock that has run little');
select is(
    pg_sequence_last_value('procrastinate_lock_era') % 2, 0::bigint, 'an era ends when there is not'
);
select pg_temp.finish('f');

insert into procrastinate_lock_floors (lock, era, holder_id, priorities, first_ids)
select
    'little used',
    pg_sequence_last_value('procrastinate_lock_era') - 1,
    null,
    '{0}',
    '{1000000000}';
select procrastinate_defer_job('g', lock => 'little used');
select is(pg_temp.fetch(), 'g', 'floors of a past era mean nothing');

select * from finish();
rollback;
