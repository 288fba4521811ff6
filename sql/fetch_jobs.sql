-- Claim the jobs that a worker is to run now.

create function procrastinate_fetch_jobs(
    worker_id bigint,
    queue_names text[] = null,
    max_jobs integer = 1
)
returns setof procrastinate_fetched_job
language plpgsql
set search_path from current
-- Pins the plans whatever the statistics say, also those of the functions called from here.
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    batch constant integer := least(greatest(max_jobs, 100), 1000);
    claimed integer := 0;
    least_locks integer := 10;
    round integer;
    promoted bigint[];
    locks integer;
    is_more boolean;
    heads bigint[];
    chosen bigint[];
    busy boolean;
    readied bigint[] := array[]::bigint[];
    has_waited boolean := false;
begin
    perform _procrastinate_check_fetch(worker_id, queue_names, max_jobs);
    -- A few jobs are few rows to pass.
    if max_jobs > 20 then
        perform _procrastinate_be_admitted();
    end if;

    loop
        promoted := _procrastinate_promote_due(batch);
        locks := _procrastinate_locks_to_settle(
            queue_names, greatest(max_jobs - claimed, least_locks)
        );
        heads := '{}';
        is_more := false;
        busy := false;
        if locks > 0 then
            select freed.heads, freed.is_more, freed.busy into heads, is_more, busy
            from _procrastinate_free_heads(locks) as freed;
        end if;

        chosen := _procrastinate_choose(queue_names, heads, max_jobs - claimed);
        return query select claim.* from _procrastinate_claim(worker_id, chosen) as claim;
        get diagnostics round = row_count;
        readied := readied || promoted || case when heads = chosen then '{}' else heads end;
        claimed := claimed + round;
        exit when claimed >= max_jobs;

        -- Short of jobs, go on while there may be more to tidy: never come back empty for that.
        if busy and claimed = 0 and not has_waited then
            has_waited := true;
            perform _procrastinate_await_settler();
        else
            exit when cardinality(promoted) < batch and not is_more;
            -- Most of them were of jobs without a successor, then: the next ones may be too.
            least_locks := least(least_locks * 2, 1000);
        end if;
    end loop;

    -- Others may wait for what became ready here and was not for this worker.
    if readied <> '{}' then
        perform _procrastinate_notify_waiting(readied);
    end if;
end;
$$;

comment on function procrastinate_fetch_jobs is
'Claim up to max_jobs runnable jobs of these queues (null: all) for a worker: by priority, then '
'first come first served. Fewer come only if nothing else can be run that is not being claimed by '
'another; while somebody holds an old snapshot, what was committed late may come some seconds '
'later, where a million have run since a minute (docs/decisions/0006-floors.md). To be called in a '
'short read committed transaction of its own, which may give up synchronous commits: claims of '
'jobs with a lock have them all the same. Of the fetches of more than 20 jobs eight go on at a '
'time; another waits for one of them to end, but no longer than a second. '
'Errors: PC004 if the worker is not registered or was given up; 22023 (an empty array of queues '
'among them); 25001 in another isolation level. Example: '
'select * from procrastinate_fetch_jobs(7, array[''mail''], max_jobs => 10).';

create function procrastinate_fetch_job(worker_id bigint, queue_names text[] = null)
returns setof procrastinate_fetched_job
language plpgsql
set search_path from current
as $$
begin
    return query
    select job.* from procrastinate_fetch_jobs(worker_id, queue_names) as job;
end;
$$;

comment on function procrastinate_fetch_job is
'Claim one job, as procrastinate_fetch_jobs with max_jobs 1: one row or none. Errors: PC004; '
'22023; 25001. Example: select * from procrastinate_fetch_job(7).';

create function _procrastinate_check_fetch(worker_id bigint, queue_names text[], max_jobs integer)
returns void
language plpgsql
set search_path from current
as $$
begin
    perform _procrastinate_check_read_committed();
    -- array_position() takes no array of arrays.
    if queue_names = '{}'
        or array_ndims(queue_names) > 1
        or array_position(queue_names, null) is not null
    then
        perform _procrastinate_refuse(
            'queue_names',
            'must be a plain array of at least one queue, without nulls',
            'Null, in place of an array, means all queues.'
        );
    elsif coalesce(max_jobs < 1, true) then
        perform _procrastinate_refuse('max_jobs', 'must be at least 1');
    elsif not exists (
        select from procrastinate_workers as worker
        where worker.id = worker_id and worker.gone_at is null
    ) then
        perform _procrastinate_refuse_worker(worker_id);
    end if;
end;
$$;

comment on function _procrastinate_check_fetch is
'Raise 22023, 25001 or PC004 unless this fetch may go on.';

create function _procrastinate_without_paused(queue_names text[])
returns text[]
language plpgsql
set search_path from current
as $$
declare
    paused constant text[] := array(
        select queue.queue_name from procrastinate_queues as queue where queue.paused_at is not null
    );
begin
    if paused = '{}' then
        return queue_names;
    end if;

    if queue_names is null then
        -- With a queue paused, all others are named: jumps from name to name through the ready
        -- index.
        queue_names := array(
            with recursive ready (queue_name) as (
                select min(job.queue_name)
                from procrastinate_jobs as job
                where job.ready_seq is not null
                union all
                select (
                    select min(job.queue_name)
                    from procrastinate_jobs as job
                    where job.ready_seq is not null and job.queue_name > ready.queue_name
                )
                from ready
                where ready.queue_name is not null
            )
            select ready.queue_name from ready where ready.queue_name is not null
        );
    end if;
    return array(
        select named.queue from unnest(queue_names) as named (queue)
        where named.queue <> all(paused)
    );
end;
$$;

comment on function _procrastinate_without_paused is
'The queues to fetch from: those named (null: all, if none is paused) less the paused ones.';

create function _procrastinate_locks_to_settle(queue_names text[], max_jobs integer)
returns integer
language plpgsql
set search_path from current
as $$
begin
    if not _procrastinate_has_events() then
        return 0;
    elsif max_jobs <= 20 then
        return 20;
    end if;
    -- Heads that cannot be claimed at once have to be made ready, one more version of their row:
    -- so as many as are wanted beside the ready jobs, and few if there are enough of those.
    return least(greatest(
        max_jobs - _procrastinate_count_ready(queue_names, max_jobs - max_jobs / 5), 20
    ), 1000);
end;
$$;

comment on function _procrastinate_locks_to_settle is
'How many locks a fetch is to settle that still wants so many jobs; zero: there are no events.';

create function _procrastinate_choose(queue_names text[], heads bigint[], max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    places_left constant integer := greatest(max_jobs - cardinality(heads), 0);
    ready integer;
    chosen bigint[];
    picked bigint[];
begin
    if heads = '{}' then
        return _procrastinate_pick(_procrastinate_without_paused(queue_names), max_jobs);
    end if;
    ready := _procrastinate_count_ready(queue_names, places_left + 1);
    if ready > places_left then
        perform _procrastinate_make_ready(heads);
        return _procrastinate_pick(_procrastinate_without_paused(queue_names), max_jobs);
    end if;

    -- All that is ready can be claimed too: the heads start without being made ready first.
    chosen := _procrastinate_heads_of(queue_names, heads, max_jobs);
    if ready > 0 and cardinality(chosen) < max_jobs then
        picked := _procrastinate_pick(
            _procrastinate_without_paused(queue_names), max_jobs - cardinality(chosen)
        );
        chosen := array(
            select job.id
            from unnest(picked || chosen) with ordinality as one (id, place)
            inner join procrastinate_jobs as job on job.id = any(array[one.id])
            order by job.priority desc, one.place
        );
    end if;
    return chosen;
end;
$$;

comment on function _procrastinate_choose is
'Choose up to max_jobs jobs to claim, and hold their rows: of those that are ready, and of the '
'heads of free locks, in order of priority, which this transaction holds and makes ready unless '
'they are chosen at once. Returns them in order.';

create function _procrastinate_heads_of(queue_names text[], heads bigint[], max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    chosen bigint[];
begin
    if queue_names is null
        and not exists (
            select from procrastinate_queues as queue where queue.paused_at is not null
        )
    then
        perform _procrastinate_make_ready(heads[max_jobs + 1:]);
        return heads[:max_jobs];
    end if;

    chosen := array(
        select job.id
        from unnest(heads) with ordinality as head (id, place)
        inner join procrastinate_jobs as job on job.id = any(array[head.id])
        where
            (queue_names is null or job.queue_name = any(queue_names))
            and not exists (
                select from procrastinate_queues as queue
                where queue.queue_name = job.queue_name and queue.paused_at is not null
            )
        order by head.place
        limit max_jobs
    );
    perform _procrastinate_make_ready(array(
        select head.id
        from unnest(heads) with ordinality as head (id, place)
        where head.id <> all(chosen)
        order by head.place
    ));
    return chosen;
end;
$$;

comment on function _procrastinate_heads_of is
'Choose up to max_jobs of the heads, in their order, that are in these queues (null: all) and not '
'paused; make the others ready.';

create function _procrastinate_claim(worker_id bigint, job_ids bigint[])
returns setof procrastinate_fetched_job
language plpgsql
set search_path from current
as $$
begin
    -- An update of no rows still opens all indexes.
    if job_ids = '{}' then
        return;
    end if;
    perform _procrastinate_keep_locks_safe(job_ids);
    perform _procrastinate_act(true);
    return query
    update procrastinate_jobs as job
    set
        status = 'doing',
        ready_seq = null,
        worker_id = _procrastinate_claim.worker_id,
        started_at = clock_timestamp()
    from unnest(job_ids) as chosen (id)
    where job.id = any(array[chosen.id])
    returning
        job.id,
        job.task_name,
        job.args,
        job.queue_name,
        job.priority,
        job.lock,
        job.queueing_lock,
        job.scheduled_at,
        job.attempts + 1,
        -- Not a join: its index holds only the tasks that have one.
        (
            select task.timeout from procrastinate_tasks as task
            where task.task_name = job.task_name and task.timeout is not null
        );
    perform _procrastinate_act(false);
end;
$$;

comment on function _procrastinate_claim is
'Start these jobs, whose rows this transaction holds, for a worker, in this order.';

create function _procrastinate_keep_locks_safe(job_ids bigint[])
returns void
language plpgsql
set search_path from current
as $$
begin
    if current_setting('synchronous_commit') <> 'off' then
        return;
    end if;
    if exists (
        select from procrastinate_jobs as job where job.id = any(job_ids) and job.lock is not null
    ) then
        perform _procrastinate_commit_durably();
    end if;
end;
$$;

comment on function _procrastinate_keep_locks_safe is
'Whoever gives up synchronous commits for fetches, since a claim that is lost in a crash only lets '
'the job run again, has them all the same for claims of jobs with a lock: two of them would run at '
'once.';
