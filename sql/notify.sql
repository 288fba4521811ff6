-- Workers that sleep are told when a job can be fetched; polling stays the truth.

create function _procrastinate_channel(queue_name text)
returns text
language plpgsql
immutable
set search_path from current
as $$
begin
    -- A channel's name has at most 63 bytes; a longer one would fail the insert of the job.
    return 'procrastinate_queue#'
        || case when octet_length(queue_name) <= 43 then queue_name else md5(queue_name) end;
end;
$$;

comment on function _procrastinate_channel is
'The channel of one queue: its name, or the MD5 of a long one.';

create function procrastinate_listen_channels(queue_names text[] = null)
returns setof text
language sql
immutable
set search_path from current
as $$
    select 'procrastinate_any_queue' where queue_names is null
    union
    select _procrastinate_channel(named.queue)
    from unnest(queue_names) as named (queue)
    where named.queue is not null
$$;

comment on function procrastinate_listen_channels is
'The channels that a worker of these queues LISTENs to (null: all queues). A notification says no '
'more than that fetching is worth while: its payload is empty. Example: select '
'procrastinate_listen_channels(array[''mail'']).';

create function _procrastinate_notify_queue(queue_name text)
returns void
language plpgsql
set search_path from current
as $$
begin
    perform
        pg_notify('procrastinate_any_queue', ''),
        pg_notify(_procrastinate_channel(queue_name), '');
end;
$$;

comment on function _procrastinate_notify_queue is
'Wake the workers of a queue when this transaction commits. PostgreSQL folds what a transaction '
'repeats.';

create function _procrastinate_notify_waiting(job_ids bigint[])
returns void
language plpgsql
set search_path from current
as $$
begin
    -- PostgreSQL takes `= any('{}')` for a proof of every partial index, and may read the whole of one.
    if cardinality(job_ids) = 0 then
        return;
    end if;
    perform _procrastinate_notify_queue(waiting.queue_name)
    from (
        select distinct job.queue_name
        from procrastinate_jobs as job
        where job.id = any(job_ids) and job.status = 'todo'
    ) as waiting;
end;
$$;

comment on function _procrastinate_notify_waiting is
'Wake the workers of the queues in which some of these jobs wait.';
