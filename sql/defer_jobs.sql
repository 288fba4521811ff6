-- Create many jobs in one statement, all or none.

create function procrastinate_defer_jobs(jobs jsonb)
returns table (ordinal integer, id bigint, created boolean)
language plpgsql
set search_path from current
as $$
declare
    own_ids bigint[];
    ids bigint[];
    -- Those with a queueing lock.
    once procrastinate_new_job[];
    policies text[];
    places integer[];
begin
    with given as materialized (
        select * from _procrastinate_read_jobs(jobs)
    ),
    inserted as (
        insert into procrastinate_jobs (
            id, task_name, args, queue_name, priority, lock, scheduled_at
        )
        select
            new.id, new.task_name, new.args, new.queue_name, new.priority, new.lock,
            new.scheduled_at
        from given as new
        where new.queueing_lock is null
    ),
    -- In the order of their queueing locks, so that two batches cannot wait for each other.
    in_order as (
        select * from given where given.queueing_lock is not null
        order by given.queueing_lock, given.place
    )
    select
        (select array_agg(given.id order by given.place) from given),
        array_agg((
            new.id, new.task_name, new.args, new.queue_name, new.priority, new.lock,
            new.queueing_lock, new.scheduled_at
        )::procrastinate_new_job),
        array_agg(new.on_conflict),
        array_agg(new.place)
    into own_ids, once, policies, places
    from in_order as new;

    ids := own_ids;
    for number in 1 .. coalesce(cardinality(places), 0) loop
        ids[places[number]] := _procrastinate_defer_once(once[number], policies[number]);
    end loop;

    return query
    select deferred.place::integer, deferred.id, deferred.id = deferred.own_id
    from unnest(ids, own_ids) with ordinality as deferred (id, own_id, place);
end;
$$;

comment on function procrastinate_defer_jobs is
'Create many jobs in one statement, all or none, from an array of objects whose keys are the '
'arguments of procrastinate_defer_job (a missing key or a null takes the default). Returns a row '
'for each element: its ordinal (from 1), the id of its job, and whether that job was created or '
'already waited with the same queueing lock. Errors: 22023 bad argument, named with its element; '
'PC002. Example: select * from procrastinate_defer_jobs(''[{"task_name": "send_email", "args": '
'{"to": "ann"}}]'').';

create function _procrastinate_read_jobs(jobs jsonb)
returns table (
    place integer,
    id bigint,
    task_name text,
    args jsonb,
    queue_name text,
    priority integer,
    lock text,
    queueing_lock text,
    scheduled_at timestamptz,
    on_conflict text
)
language plpgsql
set search_path from current
as $$
#variable_conflict use_column
declare
    keys constant text[] := array[
        'task_name', 'args', 'queue_name', 'priority',
        'lock', 'queueing_lock', 'scheduled_at', 'on_conflict'
    ];
begin
    if coalesce(jsonb_typeof(jobs) <> 'array', true) then
        perform _procrastinate_refuse_jobs(jobs, keys);
    end if;
    return query
    select
        given.place::integer,
        nextval('procrastinate_jobs_id_seq'),
        given.job ->> 'task_name',
        coalesce(nullif(given.job -> 'args', 'null'), '{}'),
        coalesce(given.job ->> 'queue_name', task.queue_name, 'default'),
        coalesce((given.job ->> 'priority')::numeric::integer, task.priority, 0),
        coalesce(given.job ->> 'lock', task.lock),
        given.job ->> 'queueing_lock',
        case when given.job ->> 'scheduled_at' is not null
            then _procrastinate_read_time('scheduled_at', given.job ->> 'scheduled_at')
        end,
        coalesce(given.job ->> 'on_conflict', 'raise')
    from jsonb_array_elements(jobs) with ordinality as given (job, place)
    left join procrastinate_tasks as task on task.task_name = given.job ->> 'task_name'
    -- One pass over jobs that are right. What is wrong with others is then looked for.
    where case
        when
            jsonb_typeof(given.job) = 'object' and given.job - keys = '{}'
            and jsonb_typeof(given.job -> 'task_name') = 'string'
            and char_length(given.job ->> 'task_name') between 1 and 512
            and coalesce(jsonb_typeof(given.job -> 'args') in ('object', 'null'), true)
            and coalesce(jsonb_typeof(given.job -> 'priority') in ('number', 'null'), true)
            and coalesce(
                (given.job ->> 'priority')::numeric between -2147483648 and 2147483647
                and (given.job ->> 'priority')::numeric % 1 = 0, true
            )
            and coalesce(jsonb_typeof(given.job -> 'queue_name') in ('string', 'null'), true)
            and coalesce(char_length(given.job ->> 'queue_name') between 1 and 512, true)
            and coalesce(jsonb_typeof(given.job -> 'lock') in ('string', 'null'), true)
            and coalesce(char_length(given.job ->> 'lock') between 1 and 512, true)
            and coalesce(jsonb_typeof(given.job -> 'queueing_lock') in ('string', 'null'), true)
            and coalesce(char_length(given.job ->> 'queueing_lock') between 1 and 512, true)
            and coalesce(jsonb_typeof(given.job -> 'scheduled_at') in ('string', 'null'), true)
            and coalesce(given.job ->> 'on_conflict' in ('raise', 'skip', 'replace'), true)
        then true
        else _procrastinate_refuse_jobs(jobs, keys)
    end
    order by given.place;
end;
$$;

comment on function _procrastinate_read_jobs is
'Turn the elements of a batch into jobs with their defaults filled in and their ids drawn in '
'order. Raises 22023 for the first that is wrong.';

create function _procrastinate_refuse_jobs(jobs jsonb, keys text[])
returns boolean
language plpgsql
set search_path from current
as $$
declare
    bad record;
begin
    perform _procrastinate_check_batch('jobs', jobs, keys);
    select given.place, checked.key into bad
    from rows from (
        jsonb_to_recordset(jobs) as (
            task_name jsonb, args jsonb, queue_name jsonb, priority jsonb,
            lock jsonb, queueing_lock jsonb, scheduled_at jsonb, on_conflict jsonb
        )
    ) with ordinality as given (
        task_name, args, queue_name, priority,
        lock, queueing_lock, scheduled_at, on_conflict, place
    )
    cross join lateral (
        select case
            when jsonb_typeof(given.args) <> 'object' then 'args'
            when
                case jsonb_typeof(given.priority)
                    when 'number' then
                        given.priority::numeric not between -2147483648 and 2147483647
                        or given.priority::numeric % 1 <> 0
                    else given.priority is not null
                end then 'priority'
            when given.on_conflict not in ('"raise"', '"skip"', '"replace"') then 'on_conflict'
            when jsonb_typeof(given.scheduled_at) <> 'string' then 'scheduled_at'
            when
                jsonb_typeof(given.task_name) <> 'string'
                or char_length(given.task_name #>> '{}') not between 1 and 512 then 'task_name'
            when
                jsonb_typeof(given.queue_name) <> 'string'
                or char_length(given.queue_name #>> '{}') not between 1 and 512 then 'queue_name'
            when
                jsonb_typeof(given.lock) <> 'string'
                or char_length(given.lock #>> '{}') not between 1 and 512 then 'lock'
            when
                jsonb_typeof(given.queueing_lock) <> 'string'
                or char_length(given.queueing_lock #>> '{}') not between 1 and 512 then 'queueing_lock'
        end
    ) as checked (key)
    where checked.key is not null
    limit 1;
    perform _procrastinate_refuse(bad.key, format(
        'element %s of jobs cannot be %s',
        bad.place, left(jobs -> (bad.place - 1)::integer ->> bad.key, 100)
    ));
    return false;
end;
$$;

comment on function _procrastinate_refuse_jobs is
'Raise 22023 for what is wrong with a batch: it is no array of objects, or for the first element '
'with an unknown key or a bad value.';
