-- Create many jobs in one statement, all or none.

create function procrastinate_defer_jobs(jobs jsonb)
returns table (ordinal integer, id bigint, created boolean)
language plpgsql
set search_path from current
as $$
declare
    new_jobs procrastinate_new_job[];
    policies text[];
    own_ids bigint[];
    ids bigint[];
    place integer;
begin
    perform _procrastinate_check_batch('jobs', jobs, array[
        'task_name', 'args', 'queue_name', 'priority',
        'lock', 'queueing_lock', 'scheduled_at', 'on_conflict'
    ]);
    select
        array_agg(read.job order by read.position),
        array_agg(read.on_conflict order by read.position),
        array_agg((read.job).id order by read.position)
    into new_jobs, policies, own_ids
    from _procrastinate_read_jobs(jobs) as read;

    insert into procrastinate_jobs (id, task_name, args, queue_name, priority, lock, scheduled_at)
    select
        new_job.id,
        new_job.task_name,
        new_job.args,
        new_job.queue_name,
        new_job.priority,
        new_job.lock,
        new_job.scheduled_at
    from unnest(new_jobs) as new_job
    where new_job.queueing_lock is null;

    ids := own_ids;
    -- In the order of their queueing locks, so that two batches cannot wait for each other.
    for place in
        -- Not by subscripts: in a query, each of them would walk through the array.
        select once.place
        from unnest(new_jobs) with ordinality as once (
            id, task_name, args, queue_name, priority, lock, queueing_lock, scheduled_at, place
        )
        where once.queueing_lock is not null
        order by once.queueing_lock, once.place
    loop
        ids[place] := _procrastinate_defer_once(new_jobs[place], policies[place]);
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
returns table ("position" bigint, job procrastinate_new_job, on_conflict text)
language plpgsql
set search_path from current
as $$
declare
    bad record;
begin
    select element.position, pair.key, pair.value into bad
    from jsonb_array_elements(jobs) with ordinality as element (value, position)
    cross join lateral jsonb_each(element.value) as pair
    where pair.value <> 'null' and not case pair.key
        when 'args' then jsonb_typeof(pair.value) = 'object'
        when 'priority' then _procrastinate_is_integer(pair.value, -2147483648, 2147483647)
        when 'on_conflict' then pair.value in ('"raise"', '"skip"', '"replace"')
        when 'scheduled_at' then jsonb_typeof(pair.value) = 'string'
        else
            jsonb_typeof(pair.value) = 'string'
            and char_length(pair.value #>> '{}') between 1 and 512
    end
    limit 1;
    if found then
        perform _procrastinate_refuse(
            bad.key,
            format('element %s of jobs cannot be %s', bad.position, left(bad.value::text, 100))
        );
    end if;

    return query
    select
        element.position,
        (
            nextval('procrastinate_jobs_id_seq'),
            element.task_name,
            coalesce(element.args, '{}'),
            coalesce(element.queue_name, task.queue_name, 'default'),
            coalesce(element.priority, task.priority, 0),
            coalesce(element.lock, task.lock),
            element.queueing_lock,
            case when element.scheduled_at is not null
                then _procrastinate_read_time('scheduled_at', element.scheduled_at)
            end
        )::procrastinate_new_job,
        coalesce(element.on_conflict, 'raise')
    from rows from (
        jsonb_to_recordset(jobs) as (
            task_name text,
            args jsonb,
            queue_name text,
            priority integer,
            lock text,
            queueing_lock text,
            scheduled_at text,
            on_conflict text
        )
    ) with ordinality as element (
        task_name, args, queue_name, priority,
        lock, queueing_lock, scheduled_at, on_conflict, position
    )
    left join procrastinate_tasks as task on element.task_name = task.task_name
    order by element.position;
end;
$$;

comment on function _procrastinate_read_jobs is
'Turn the elements of a batch into jobs with their defaults filled in and their ids drawn in '
'order. Raises 22023 for an element with a bad value.';
