-- Create many jobs in one statement, all or none.

create function procrastinate_defer_jobs(jobs jsonb, first_ordinal integer = 1)
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
    if coalesce(jsonb_typeof(jobs) <> 'array', true) then
        perform _procrastinate_check_batch('jobs', jobs, '{}');
    elsif coalesce(first_ordinal not between 1 and 1000000000, true) then
        perform _procrastinate_refuse('first_ordinal', 'must be between 1 and 1000000000');
    end if;

    with given as materialized (
        select * from _procrastinate_read_jobs(jobs, first_ordinal)
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
    select
        deferred.place::integer + first_ordinal - 1,
        deferred.id,
        deferred.id = deferred.own_id
    from unnest(ids, own_ids) with ordinality as deferred (id, own_id, place);
end;
$$;

comment on function procrastinate_defer_jobs is
'Create many jobs in one statement, all or none, from an array of objects whose keys are the '
'arguments of procrastinate_defer_job (a missing key or a null takes the default). Returns a row '
'for each element: its ordinal (from 1), the id of its job, and whether that job was created or '
'already waited with the same queueing lock. Of a batch that is sent in parts, in one transaction, '
'each part says where it begins: the ordinal of its first element. Errors: 22023 bad argument, '
'named with its element; PC002. Example: '
'select * from procrastinate_defer_jobs(''[{"task_name": "send_email", "args": {"to": "ann"}}]'').';

create function _procrastinate_read_jobs(jobs jsonb, first_ordinal integer)
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
    keys constant text[] :=
        '{task_name,args,queue_name,priority,lock,queueing_lock,scheduled_at,on_conflict}'::text[];
begin
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
        _procrastinate_read_time('scheduled_at', given.job ->> 'scheduled_at'),
        coalesce(given.job ->> 'on_conflict', 'raise')
    from jsonb_array_elements(jobs) with ordinality as given (job, place)
    -- What is wrong with it (null: nothing), in the same pass.
    cross join lateral (
        select case
            -- Most have no more than these two, and then there is little to ask.
            when
                jsonb_typeof(given.job) = 'object'
                and given.job - array['task_name', 'args'] = '{}'
                and jsonb_typeof(given.job -> 'args') = 'object'
                and jsonb_typeof(given.job -> 'task_name') = 'string'
                and char_length(given.job ->> 'task_name') between 1 and 512 then null
            when
                jsonb_typeof(given.job) <> 'object' or given.job - keys <> '{}'
                or coalesce(given.job -> 'task_name', 'null') = 'null' then 'element'
            when jsonb_typeof(given.job -> 'args') not in ('object', 'null') then 'args'
            when jsonb_typeof(given.job -> 'priority') not in ('number', 'null') then 'priority'
            when
                (given.job ->> 'priority')::numeric not between -2147483648 and 2147483647
                or (given.job ->> 'priority')::numeric % 1 <> 0 then 'priority'
            when given.job ->> 'on_conflict' not in ('raise', 'skip', 'replace') then 'on_conflict'
            when jsonb_typeof(given.job -> 'scheduled_at') not in ('string', 'null')
                then 'scheduled_at'
            when
                jsonb_typeof(given.job -> 'task_name') not in ('string', 'null')
                or char_length(given.job ->> 'task_name') not between 1 and 512 then 'task_name'
            when
                jsonb_typeof(given.job -> 'queue_name') not in ('string', 'null')
                or char_length(given.job ->> 'queue_name') not between 1 and 512 then 'queue_name'
            when
                jsonb_typeof(given.job -> 'lock') not in ('string', 'null')
                or char_length(given.job ->> 'lock') not between 1 and 512 then 'lock'
            when
                jsonb_typeof(given.job -> 'queueing_lock') not in ('string', 'null')
                or char_length(given.job ->> 'queueing_lock') not between 1 and 512
                then 'queueing_lock'
        end
    ) as checked (bad)
    left join procrastinate_tasks as task on task.task_name = given.job ->> 'task_name'
    where case when checked.bad is null then true
        else _procrastinate_refuse_new_job(jobs, keys, first_ordinal, given.place, checked.bad) end
    order by given.place;
end;
$$;

comment on function _procrastinate_read_jobs is
'Turn the elements of a batch, an array, into jobs with their defaults filled in and their ids '
'drawn in order. Raises 22023 for the first that is wrong.';

create function _procrastinate_refuse_new_job(
    jobs jsonb,
    keys text[],
    first_ordinal integer,
    place bigint,
    bad text
)
returns boolean
language plpgsql
set search_path from current
as $$
begin
    -- Of the array first, whichever element it is.
    perform _procrastinate_check_batch('jobs', jobs, keys, first_ordinal);
    perform _procrastinate_refuse(bad, format(
        'element %s of jobs cannot be %s',
        place + first_ordinal - 1, left(jobs -> (place - 1)::integer ->> bad, 100)
    ));
    return false;
end;
$$;

comment on function _procrastinate_refuse_new_job is
'Raise 22023 for an element of a batch with a bad value, or for an element that is no object of '
'these keys.';
