-- End a run: the one place that decides what becomes of a job whose run is over.

create function procrastinate_finish_job(
    job_id bigint,
    attempt integer,
    status text = 'succeeded',
    result jsonb = null,
    error text = null,
    worker_id bigint = null
)
returns void
language plpgsql
set search_path from current
as $$
begin
    if coalesce(status not in ('succeeded', 'failed', 'aborted'), true) then
        perform _procrastinate_refuse('status', 'must be succeeded, failed or aborted');
    end if;
    perform _procrastinate_end_run((
        job_id, attempt, worker_id, 'finish', status::procrastinate_job_status, result, error, null
    ));
end;
$$;

comment on function procrastinate_finish_job is
'Close a running job as succeeded, failed or aborted, with its result or error; one that failed '
'after it was asked to abort ends aborted. Works in the transaction of the caller, at any '
'isolation level, so that the effects of a job and its completion commit together. Errors: PC001 '
'if this attempt (of this worker, where given) is not the running one; 22023. Example: select '
'procrastinate_finish_job(42, attempt => 1, worker_id => 7).';

create function _procrastinate_end_run(outcome procrastinate_outcome)
returns procrastinate_job_status
language plpgsql
set search_path from current
as $$
declare
    ended record;
begin
    if outcome.job_id is null then
        perform _procrastinate_refuse('job_id', 'must not be null');
    elsif outcome.attempt is null then
        perform _procrastinate_refuse('attempt', 'must not be null');
    end if;
    perform _procrastinate_check_interval('retry_in', outcome.retry_in);

    select * into ended from _procrastinate_end_runs(array[outcome]);
    if not found then
        raise exception 'attempt % of job % is not running', outcome.attempt, outcome.job_id
            using
                errcode = 'PC001',
                hint = 'It has ended, or was given to another worker. '
                    'Undo what this run did, and drop it.';
    end if;
    return ended.status;
end;
$$;

comment on function _procrastinate_end_run is
'End one run, or raise PC001. Returns the new status of the job.';

create function _procrastinate_end_runs(outcomes procrastinate_outcome[])
returns table (ordinal integer, job_id bigint, status procrastinate_job_status)
language plpgsql
set search_path from current
-- Pins the plan whatever the statistics say: by primary key, job after job.
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    ended_at constant timestamptz := clock_timestamp();
    ordinals integer[];
    job_ids bigint[];
    statuses procrastinate_job_status[];
    left_locks procrastinate_left_lock[];
begin
    perform _procrastinate_act(true);
    with decided as materialized (
        select * from _procrastinate_decide(outcomes)
    ),
    removed as (
        delete from procrastinate_jobs as job
        using decided
        where
            job.id = any(array[decided.job_id])
            and not decided.waits and decided.keep_finished = interval '0'
        returning
            decided.ordinal, job.id, decided.status, job.lock, job.priority, job.queue_name
    ),
    ended as (
        update procrastinate_jobs as job
        set
            status = decided.status,
            attempts = job.attempts + 1,
            failures = job.failures + (decided.action in ('fail', 'retry'))::integer,
            handed_back = job.handed_back + (decided.action = 'release')::integer,
            lost = job.lost + (decided.action = 'lose')::integer,
            worker_id = case when not decided.waits then job.worker_id end,
            started_at = case when not decided.waits then job.started_at end,
            finished_at = case when not decided.waits then ended_at end,
            purge_at = case when not decided.waits then ended_at + decided.keep_finished end,
            scheduled_at = coalesce(ended_at + decided.retry_in, job.scheduled_at),
            result = decided.result,
            error = coalesce(decided.error, job.error)
        from decided
        where
            job.id = any(array[decided.job_id])
            and (decided.waits or decided.keep_finished is distinct from interval '0')
        returning
            decided.ordinal, job.id, decided.status, job.lock, job.priority, job.queue_name
    ),
    done as (
        select * from removed
        union all
        select * from ended
    )
    select
        array_agg(done.ordinal), array_agg(done.id), array_agg(done.status),
        -- What waits again has said so itself (procrastinate_job_waits).
        array_agg((done.lock, done.priority, done.id, done.queue_name)::procrastinate_left_lock)
        filter (where done.lock is not null and done.status <> 'todo')
    into ordinals, job_ids, statuses, left_locks
    from done;

    perform _procrastinate_act(false);
    perform _procrastinate_leave_locks(left_locks);
    return query select * from unnest(ordinals, job_ids, statuses);
end;
$$;

comment on function _procrastinate_end_runs is
'End the runs that are still the ones named: store what was decided, delete what is not to be '
'kept. Returns the outcomes that were applied (ordinal from 1), with the new status of the job. '
'All finishes, retries and rescues pass here.';

create function _procrastinate_decide(outcomes procrastinate_outcome[])
returns table (
    ordinal integer,
    job_id bigint,
    action text,
    status procrastinate_job_status,
    waits boolean,
    retry_in interval,
    keep_finished interval,
    result jsonb,
    error text
)
language plpgsql
set search_path from current
as $$
#variable_conflict use_column
begin
    return query
    select distinct on (run.job_id)
        run.ordinal,
        run.job_id,
        run.action,
        coalesce(verdict.final_status, 'todo'),
        verdict.final_status is null,
        case run.action
            when 'retry' then run.retry_in
            when 'fail' then _procrastinate_retry_delay(run.task_name, run.failures + 1)
        end,
        task.keep_finished,
        run.result,
        case when run.action = 'lose' then 'worker lost' else run.error end
    from _procrastinate_hold_runs(outcomes) as run
    left join procrastinate_tasks as task on run.task_name = task.task_name
    cross join lateral (
        select case
            when run.status in ('succeeded', 'aborted') then run.status
            when
                run.abort_requested
                or exists (
                    select from procrastinate_abort_requests as request
                    where request.job_id = run.job_id
                ) then 'aborted'
            when run.action = 'finish' then run.status
            when
                run.action = 'fail'
                and run.failures + 1
                >= case when task.task_name is null then 1 else task.max_attempts end
                then 'failed'
            when run.action = 'lose' and run.lost + 1 > coalesce(task.max_lost, 5) then 'failed'
        end
    ) as verdict (final_status)
    order by run.job_id, run.ordinal;
end;
$$;

comment on function _procrastinate_decide is
'What becomes of each job whose run is over: final, or waiting again, and when. Of several '
'outcomes for one run the first counts.';

create function _procrastinate_hold_runs(outcomes procrastinate_outcome[])
returns table (
    ordinal integer,
    job_id bigint,
    action text,
    status procrastinate_job_status,
    retry_in interval,
    result jsonb,
    error text,
    task_name text,
    failures integer,
    lost integer,
    abort_requested boolean
)
language plpgsql
set search_path from current
as $$
#variable_conflict use_column
begin
    return query
    select
        outcome.ordinal::integer, job.id, outcome.action,
        outcome.status, outcome.retry_in, outcome.result, outcome.error,
        job.task_name, job.failures, job.lost, job.abort_requested
    from (
        select given.*
        from unnest(outcomes) with ordinality as given (
            job_id, attempt, worker_id, action, status, result, error, retry_in, ordinal
        )
        order by given.job_id, given.ordinal
    ) as outcome
    inner join procrastinate_jobs as job on job.id = any(array[outcome.job_id])
    where
        job.status = 'doing'
        and job.attempts + 1 = coalesce(outcome.attempt, job.attempts + 1)
        and job.worker_id = coalesce(outcome.worker_id, job.worker_id)
    for update of job;
end;
$$;

comment on function _procrastinate_hold_runs is
'Hold the jobs of which a run ends, in the order of their ids, so that two batches cannot wait for '
'each other; and only then decide, so that what was asked of them meanwhile counts. Outcomes of '
'runs that are not the running one are left out.';

create function _procrastinate_leave_locks(left_locks procrastinate_left_lock[])
returns void
language plpgsql
set search_path from current
as $$
begin
    if left_locks is null then
        return;
    end if;
    perform _procrastinate_append_events(array(
        select done.lock
        from unnest(left_locks) with ordinality as done (lock, priority, id, queue_name, place)
        order by done.place
    ));

    -- Whose turn is next is not decided here: wake whoever is likely to find out and to run it. An
    -- older snapshot does not see who waits by now.
    if current_setting('transaction_isolation') <> 'read committed' then
        perform _procrastinate_notify_queue(own.queue)
        from (
            select distinct done.queue_name as queue from unnest(left_locks) as done
        ) as own;
    end if;
    perform _procrastinate_notify_queue(next_up.queue)
    from _procrastinate_next_queues(left_locks) as next_up (queue);
end;
$$;

comment on function _procrastinate_leave_locks is
'Note that another job of these locks (null: of none) may be next.';

create function _procrastinate_next_queues(left_locks procrastinate_left_lock[])
returns setof text
language plpgsql
set search_path from current
as $$
declare
    -- While a snapshot is held, a look from the start of a lock leads through all that it has run.
    has_floors constant boolean
        := coalesce(pg_sequence_last_value('procrastinate_lock_era') % 2 = 1, false);
begin
    return query
    select distinct head.queue_name
    from unnest(left_locks) as done (lock, priority, id, queue_name)
    cross join lateral (
        -- All that there is; with floors what is above the job, and then the other two.
        (
            select job.queue_name
            from procrastinate_jobs as job
            where
                job.lock = done.lock and job.status = 'todo'
                and job.priority > case when has_floors then done.priority else -2147483649 end
            order by job.priority desc, job.id + 0
            limit 1
        )
        union all
        (
            -- A little before the job, for one that was committed after a later one.
            select job.queue_name
            from procrastinate_jobs as job
            where
                has_floors
                and job.lock = done.lock and job.status = 'todo'
                and job.priority = done.priority and job.id + 0 > done.id - 1000
            order by job.priority desc, job.id + 0
            limit 1
        )
        union all
        (
            select job.queue_name
            from procrastinate_jobs as job
            where
                has_floors
                and job.lock = done.lock and job.status = 'todo' and job.priority < done.priority
            order by job.priority desc, job.id + 0
            limit 1
        )
        limit 1
    ) as head;
end;
$$;

comment on function _procrastinate_next_queues is
'The queues in which the next jobs of these locks wait, as far as can be seen now.';
