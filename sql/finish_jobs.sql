-- End many runs in one statement.

create function procrastinate_finish_jobs(outcomes jsonb)
returns table (ordinal integer, job_id bigint, reason text)
language plpgsql
set search_path from current
as $$
begin
    return query
    select * from _procrastinate_end_all(_procrastinate_read_outcomes(outcomes));
end;
$$;

comment on function procrastinate_finish_jobs is
'End many runs in one statement. outcomes is an array of objects with job_id, attempt and '
'worker_id, and one of: status (succeeded, failed, aborted) with result and error; fail: true with '
'error, as procrastinate_fail_job; retry_in (seconds, an interval, or null for at once) with '
'error, as procrastinate_retry_job. Returns only the outcomes that were refused: ordinal (from 1), '
'job_id, and the reason, `not running` (the PC001 of the single functions) or `duplicate` (of two '
'for one run the first counts). The others are applied. Error: 22023 for a malformed element, and '
'then nothing is applied. Example: select * from procrastinate_finish_jobs(''[{"job_id": 42, '
'"attempt": 1, "status": "succeeded"}]'').';

create function _procrastinate_end_all(wanted procrastinate_outcome[])
returns table (ordinal integer, job_id bigint, reason text)
language plpgsql
set search_path from current
as $$
#variable_conflict use_column
declare
    applied integer[];
begin
    select array_agg(ended.ordinal) into applied
    from _procrastinate_end_runs(wanted) as ended;

    if cardinality(applied) = cardinality(wanted) then
        return;
    end if;
    return query
    with wanted_run as materialized (
        select outcome.ordinal::integer as ordinal, outcome.job_id, outcome.attempt
        from unnest(wanted) with ordinality as outcome (
            job_id, attempt, worker_id, action, status, result, error, retry_in, ordinal
        )
    ),
    applied_run as materialized (
        select run.job_id, run.attempt from wanted_run as run where run.ordinal = any(applied)
    )
    select
        refused.ordinal,
        refused.job_id,
        case
            when (refused.job_id, refused.attempt) in (
                select run.job_id, run.attempt from applied_run as run
            ) then 'duplicate'
            else 'not running'
        end
    from wanted_run as refused
    where refused.ordinal <> all(coalesce(applied, '{}'));
end;
$$;

comment on function _procrastinate_end_all is
'End many runs; return those that were refused, and why.';

create function _procrastinate_read_outcomes(outcomes jsonb)
returns procrastinate_outcome[]
language plpgsql
set search_path from current
as $$
begin
    perform _procrastinate_check_batch('outcomes', outcomes, array[
        'job_id', 'attempt', 'worker_id', 'status', 'result', 'error', 'fail', 'retry_in'
    ]);
    perform _procrastinate_check_outcomes(outcomes);

    return array(
        select
            (
                given.job_id::bigint,
                given.attempt::integer,
                given.worker_id::bigint,
                case
                    when given.status is not null then 'finish'
                    when given.fail then 'fail'
                    else 'retry'
                end,
                given.status,
                given.result,
                given.error,
                case when given.retry_in is not null
                    then _procrastinate_read_interval('retry_in', given.retry_in)
                end
            )::procrastinate_outcome
        from rows from (
            jsonb_to_recordset(outcomes) as (
                job_id numeric,
                attempt numeric,
                worker_id numeric,
                status text,
                result jsonb,
                error text,
                fail boolean,
                retry_in jsonb
            )
        ) with ordinality as given (
            job_id, attempt, worker_id, status, result, error, fail, retry_in, position
        )
        order by given.position
    );
end;
$$;

comment on function _procrastinate_read_outcomes is
'Turn the elements of a batch into outcomes. Raises 22023 for a malformed one.';

create function _procrastinate_check_outcomes(outcomes jsonb)
returns void
language plpgsql
set search_path from current
as $$
declare
    bad bigint;
begin
    select min(given.position) into bad
    from rows from (
        jsonb_to_recordset(outcomes) as (
            job_id jsonb, attempt jsonb, worker_id jsonb,
            status jsonb, error jsonb, fail jsonb, retry_in jsonb
        )
    ) with ordinality as given (
        job_id, attempt, worker_id, status, error, fail, retry_in, position
    )
    cross join lateral (
        select
            case jsonb_typeof(given.job_id) when 'number' then given.job_id::numeric end as job_id,
            case jsonb_typeof(given.attempt)
                when 'number' then given.attempt::numeric
            end as attempt,
            case jsonb_typeof(coalesce(given.worker_id, '1'))
                when 'number' then coalesce(given.worker_id, '1')::numeric
            end as worker_id
    ) as number
    where not coalesce(
        number.job_id between 1 and 9223372036854775807 and number.job_id % 1 = 0
        and number.attempt between 1 and 2147483647 and number.attempt % 1 = 0
        and number.worker_id between 1 and 9223372036854775807 and number.worker_id % 1 = 0
        and jsonb_typeof(coalesce(given.error, '""')) = 'string'
        and jsonb_typeof(coalesce(given.retry_in, '0')) in ('number', 'string')
        and coalesce(given.fail, 'true') = 'true'
        and coalesce(given.status, '"failed"') in ('"succeeded"', '"failed"', '"aborted"')
        and case num_nonnulls(given.status, given.fail, given.retry_in)
            when 1 then true
            -- A null is a value of this one: at once.
            when 0 then outcomes -> (given.position - 1)::integer ? 'retry_in'
            else false
        end,
        false
    );
    if bad is not null then
        perform _procrastinate_refuse(
            'outcomes', format('element %s is not an outcome', bad),
            'job_id and attempt are positive integers, error is a text, '
            'and one of status, fail and retry_in is there.'
        );
    end if;
end;
$$;

comment on function _procrastinate_check_outcomes is
'Raise 22023 for the first element of a batch whose values are no outcome.';
