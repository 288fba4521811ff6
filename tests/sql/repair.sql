-- After a restore or a switch-over, what lives outside the rows is made to fit them again.
begin;
\ir support/arrange.sql
select plan(20);

create function pg_temp.mended(what text)
returns bigint
language sql
as $$
    select coalesce(sum(done.amount), 0)::bigint
    from procrastinate_repair() as done
    where done.mended ~ what
$$;

select is(
    (select coalesce(sum(done.amount), 0) from procrastinate_repair() as done), 0::numeric,
    'in an empty queue there is nothing to mend'
);

-- Sequences that are behind the data. They are set forward for good: a rollback does not undo it.

select procrastinate_defer_job('restored');
insert into procrastinate_jobs (id, task_name)
select max(job.id) + 1000, 'last restored' from procrastinate_jobs as job;

select is(pg_temp.mended('jobs_id_seq'), 1000::bigint, 'numbers of jobs are set behind the last');

select cmp_ok(
    procrastinate_defer_job('new'), '>', pg_temp.id('last restored'), 'a new job has a new number'
);

select is(pg_temp.mended('seq'), 0::bigint, 'once mended there is nothing to mend');

update procrastinate_jobs as job
set ready_seq = job.ready_seq + 1000
where job.task_name = 'last restored';

select is(pg_temp.mended('ready_seq') > 0, true, 'turns are set behind the last');

select procrastinate_defer_job('newest');

select is(
    pg_temp.fetch(10), 'restored new last restored newest',
    'a new job takes its turn behind the others'
);

-- Running jobs of workers that are not known here.

delete from procrastinate_jobs;
select procrastinate_defer_job('orphan');
select procrastinate_defer_job('held');
select pg_temp.fetch();
select pg_temp.fetch(worker_name => 'bob');
delete from procrastinate_workers as worker where worker.name = 'ann';

select is(
    pg_temp.mended('gone taken back'), 1::bigint,
    'running jobs of workers that are gone are taken back'
);

select is(pg_temp.fetch(10, worker_name => 'bob'), 'orphan', 'they run again');

select is((pg_temp.job('held')).attempts, 0, 'those of known workers go on');

-- What a worker that left in good order could not hand back, since its row was held.

update procrastinate_workers as worker
set gone_at = clock_timestamp(), unregistered = true
where worker.name = 'bob';

select is(
    pg_temp.mended('gone taken back'), 2::bigint, 'so are those of a worker that left in good order'
);

select is(
    array[(pg_temp.job('held')).handed_back, (pg_temp.job('held')).lost], array[1, 0],
    'they are handed back, not lost'
);

-- Workers that are silent: here, or since another server was told that they live.

delete from procrastinate_jobs;
select procrastinate_defer_job(named.task)
from unnest(array['silent', 'ahead', 'alive']) as named (task);
select pg_temp.fetch(worker_name => 'silent');
select pg_temp.fetch(worker_name => 'ahead');
select pg_temp.fetch(worker_name => 'alive');
update procrastinate_workers as worker
set last_heartbeat = worker.last_heartbeat + moved.by
from (
    values ('silent', interval '-4 seconds'), ('ahead', '1 hour'), ('alive', '-2 seconds')
) as moved (name, by)
where worker.name = moved.name;

select is(
    pg_temp.mended('given up|taken back'), 0::bigint,
    'who is silent has its lease: it may be on its way here'
);

select results_eq(
    $$
    select done.mended, done.amount
    from procrastinate_repair(give_up_silent => true) as done
    where done.mended ~ 'given up|taken back'
    order by done.mended
    $$,
    $$values
    ('jobs of workers that are gone taken back', 2::bigint), ('silent workers given up', 2)$$,
    'unless it is said that none comes back'
);

select is(pg_temp.sorted(pg_temp.fetch(10)), 'ahead silent', 'their jobs run again');

select is((pg_temp.job('alive')).status::text, 'doing', 'those of workers that beat go on');

select throws_ok(
    format('select procrastinate_heartbeat(%s)', worker.id), 'PC004', null,
    'one that does come back is told to register again'
)
from procrastinate_workers as worker
where worker.name = 'silent';

-- Locks of which nobody knows any more who is next.

delete from procrastinate_jobs;
select procrastinate_defer_job('first', lock => 'x');
select procrastinate_defer_job('second', lock => 'x');
select procrastinate_defer_job('other', lock => 'y');
truncate procrastinate_lock_events;

select is(pg_temp.fetch(10), '', 'without their events locks are stranded');

select is(pg_temp.mended('locks'), 2::bigint, 'every lock is looked at afresh');

select is(pg_temp.sorted(pg_temp.fetch(10)), 'first other', 'then the first jobs run');

select is(pg_temp.drain(), 'second', 'and the next after them');

select * from finish();
rollback;
