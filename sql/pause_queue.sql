-- Stop and restart fetching from a queue, for all workers at once.

create function procrastinate_pause_queue(queue_name text)
returns void
language plpgsql
set search_path from current
as $$
begin
    perform _procrastinate_check_name('queue_name', queue_name);
    insert into procrastinate_queues as queue (queue_name, paused_at)
    values (queue_name, clock_timestamp())
    on conflict on constraint procrastinate_queues_pkey do update
    set paused_at = excluded.paused_at
    where queue.paused_at is null;
end;
$$;

comment on function procrastinate_pause_queue is
'Fetch nothing more from a queue, from the commit on, whatever the worker. What runs goes on; jobs '
'can be deferred, and keep their place in their lock. Error: 22023. Example: select '
'procrastinate_pause_queue(''mail'').';

create function procrastinate_resume_queue(queue_name text)
returns void
language plpgsql
set search_path from current
as $$
begin
    perform _procrastinate_check_name('queue_name', queue_name);
    update procrastinate_queues as queue
    set paused_at = null
    where queue.queue_name = procrastinate_resume_queue.queue_name and queue.paused_at is not null;
    if found then
        perform _procrastinate_notify_queue(queue_name);
    end if;
end;
$$;

comment on function procrastinate_resume_queue is
'Let a paused queue go on. Error: 22023. Example: select procrastinate_resume_queue(''mail'').';
