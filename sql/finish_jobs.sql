-- End many runs in one statement.

create function procrastinate_finish_jobs(outcomes jsonb)
returns table (ordinal integer, job_id bigint, reason text)
language plpgsql
set search_path from current
as $$
#variable_conflict use_column
declare
    wanted procrastinate_outcome[] := _procrastinate_read_outcomes(outcomes);
    applied integer[];
begin
    select array_agg(ended.ordinal) into applied
    from _procrastinate_end_runs(wanted) as ended;

    if cardinality(applied) = cardinality(wanted) then
        return;
    end if;
    return query
    select
        refused.ordinal::integer,
        refused.job_id,
        case
            when exists (
                select from unnest(applied) as place (ordinal)
                where
                    wanted[place.ordinal].job_id = refused.job_id
                    and wanted[place.ordinal].attempt = refused.attempt
                    and coalesce(wanted[place.ordinal].worker_id = refused.worker_id, true)
            ) then 'duplicate'
            else 'not running'
        end
    from unnest(wanted) with ordinality as refused (
        job_id, attempt, worker_id, action, status, result, error, retry_in, ordinal
    )
    where refused.ordinal <> all(coalesce(applied, '{}'));
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

create function _procrastinate_read_outcomes(outcomes jsonb)
returns procrastinate_outcome[]
language plpgsql
set search_path from current
as $$
declare
    bad record;
begin
    perform _procrastinate_check_batch('outcomes', outcomes, array[
        'job_id', 'attempt', 'worker_id', 'status', 'result', 'error', 'fail', 'retry_in'
    ]);

    select element.position into bad
    from jsonb_array_elements(outcomes) with ordinality as element (value, position)
    where not coalesce(
        _procrastinate_is_integer(element.value -> 'job_id', 1, 9223372036854775807)
        and _procrastinate_is_integer(element.value -> 'attempt', 1, 2147483647)
        and (
            coalesce(element.value -> 'worker_id', 'null') = 'null'
            or _procrastinate_is_integer(element.value -> 'worker_id', 1, 9223372036854775807)
        )
        and jsonb_typeof(coalesce(element.value -> 'error', 'null')) in ('string', 'null')
        and jsonb_typeof(coalesce(element.value -> 'retry_in', 'null'))
        in ('number', 'string', 'null')
        and coalesce(element.value -> 'fail', 'true') = 'true'
        and coalesce(element.value -> 'status', '"failed"')
        in ('"succeeded"', '"failed"', '"aborted"')
        and (element.value ? 'status')::integer
            + (element.value ? 'fail')::integer
            + (element.value ? 'retry_in')::integer = 1,
        false
    )
    limit 1;
    if found then
        perform _procrastinate_refuse(
            'outcomes', format('element %s is not an outcome', bad.position),
            'job_id and attempt are positive integers, error is a text, '
            'and one of status, fail and retry_in is there.'
        );
    end if;

    return (
        select coalesce(array_agg(
            (
                (element.value ->> 'job_id')::bigint,
                (element.value ->> 'attempt')::integer,
                (element.value ->> 'worker_id')::bigint,
                case
                    when element.value ? 'status' then 'finish'
                    when element.value ? 'fail' then 'fail'
                    else 'retry'
                end,
                element.value ->> 'status',
                nullif(element.value -> 'result', 'null'),
                element.value ->> 'error',
                case when element.value -> 'retry_in' <> 'null'
                    then _procrastinate_read_interval('retry_in', element.value -> 'retry_in')
                end
            )::procrastinate_outcome
            order by element.position
        ), '{}')
        from jsonb_array_elements(outcomes) with ordinality as element (value, position)
    );
end;
$$;

comment on function _procrastinate_read_outcomes is
'Turn the elements of a batch into outcomes. Raises 22023 for a malformed one.';
