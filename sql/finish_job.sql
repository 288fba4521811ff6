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
-- Pins the plan whatever the statistics say: by primary key, job after job, in the order of their
-- ids (so that two batches cannot wait for each other).
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    ended_at constant timestamptz := clock_timestamp();
begin
    return query
    with decided as materialized (
        select * from _procrastinate_decide(outcomes)
    ),
    removed as (
        delete from procrastinate_jobs as job
        using decided
        where
            job.id = any(array[decided.job_id])
            and job.status = 'doing'
            and job.attempts = decided.attempts
            and not decided.waits
            and decided.keep_finished = interval '0'
        returning decided.ordinal, job.id, decided.final_status as status
    ),
    ended as (
        update procrastinate_jobs as job
        set
            -- An abort asked for while this statement waited for the row counts: hence job, not
            -- decided.
            status = case
                when job.abort_requested and decided.final_status is distinct from 'succeeded'
                    then 'aborted'
                else coalesce(decided.final_status, 'todo')
            end,
            attempts = job.attempts + 1,
            failures = job.failures + (decided.action in ('fail', 'retry'))::integer,
            handed_back = job.handed_back + (decided.action = 'release')::integer,
            lost = job.lost + (decided.action = 'lose')::integer,
            worker_id = case when job.abort_requested or not decided.waits then job.worker_id end,
            started_at = case when job.abort_requested or not decided.waits then job.started_at end,
            finished_at = case when job.abort_requested or not decided.waits then ended_at end,
            purge_at = case
                when job.abort_requested or not decided.waits then ended_at + decided.keep_finished
            end,
            scheduled_at = coalesce(ended_at + decided.retry_in, job.scheduled_at),
            result = decided.result,
            error = coalesce(decided.error, job.error)
        from decided
        where
            job.id = any(array[decided.job_id])
            and job.status = 'doing'
            and job.attempts = decided.attempts
            and (decided.waits or decided.keep_finished is distinct from interval '0')
        returning decided.ordinal, job.id, job.status
    )
    select removed.ordinal, removed.id, removed.status from removed
    union all
    select ended.ordinal, ended.id, ended.status from ended;
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
    attempts integer,
    action text,
    waits boolean,
    final_status procrastinate_job_status,
    retry_in interval,
    keep_finished interval,
    result jsonb,
    error text
)
language plpgsql
set search_path from current
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    return query
    select distinct on (outcome.job_id)
        outcome.ordinal::integer,
        job.id,
        job.attempts,
        outcome.action,
        verdict.final_status is null,
        verdict.final_status,
        case outcome.action
            when 'retry' then outcome.retry_in
            when 'fail' then _procrastinate_retry_delay(task, job.failures + 1)
        end,
        task.keep_finished,
        outcome.result,
        case when outcome.action = 'lose' then 'worker lost' else outcome.error end
    from unnest(outcomes) with ordinality as outcome (
        job_id, attempt, worker_id, action, status, result, error, retry_in, ordinal
    )
    inner join procrastinate_jobs as job on job.id = any(array[outcome.job_id])
    left join procrastinate_tasks as task on job.task_name = task.task_name
    cross join lateral (
        select case
            when outcome.status in ('succeeded', 'aborted') then outcome.status
            when
                job.abort_requested
                or exists (
                    select from procrastinate_abort_requests as request
                    where request.job_id = job.id
                ) then 'aborted'
            when outcome.action = 'finish' then outcome.status
            when
                outcome.action = 'fail'
                and job.failures + 1
                >= case when task.task_name is null then 1 else task.max_attempts end
                then 'failed'
            when outcome.action = 'lose' and job.lost + 1 > coalesce(task.max_lost, 5) then 'failed'
        end
    ) as verdict (final_status)
    where
        job.status = 'doing'
        and job.attempts + 1 = coalesce(outcome.attempt, job.attempts + 1)
        and job.worker_id = coalesce(outcome.worker_id, job.worker_id)
    order by outcome.job_id, outcome.ordinal;
end;
$$;

comment on function _procrastinate_decide is
'What becomes of each job whose run is over: final, or waiting again, and when. Outcomes of runs '
'that are not the running one are left out; of several for one run the first counts.';
