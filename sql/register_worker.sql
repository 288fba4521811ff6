-- The life of a worker: register, beat, leave.

create function procrastinate_register_worker(
    name text = null,
    heartbeat_interval interval = '1.3 seconds',
    lease interval = '30 seconds'
)
returns bigint
language plpgsql
set search_path from current
as $$
declare
    worker_id bigint;
begin
    perform _procrastinate_check_name('name', coalesce(name, 'none'));
    perform
        _procrastinate_check_interval('heartbeat_interval', heartbeat_interval),
        _procrastinate_check_interval('lease', lease);
    if coalesce(
        heartbeat_interval not between interval '0.1 seconds' and interval '1 hour', true
    ) then
        perform _procrastinate_refuse(
            'heartbeat_interval', 'must lie between 0.1 seconds and 1 hour'
        );
    elsif coalesce(lease not between heartbeat_interval * 3 and interval '1 day', true) then
        perform _procrastinate_refuse('lease', 'must lie between three heartbeats and 1 day');
    end if;

    delete from procrastinate_workers as worker
    where
        worker.gone_at < clock_timestamp() - interval '1 day'
        and not exists (
            select from procrastinate_jobs as job
            where job.status = 'doing' and job.worker_id + 0 = worker.id
        );

    insert into procrastinate_workers as worker (name, heartbeat_interval, lease)
    values (name, heartbeat_interval, lease)
    returning worker.id into worker_id;
    return worker_id;
end;
$$;

comment on function procrastinate_register_worker is
'Register a worker and return its id. It is to call procrastinate_heartbeat every '
'heartbeat_interval; after two and a half of them in silence it is given up if its connection is '
'gone too, after its lease in any case. Error: 22023. Example: select '
'procrastinate_register_worker(''web-1'').';

create function procrastinate_unregister_worker(worker_id bigint)
returns void
language plpgsql
set search_path from current
as $$
begin
    update procrastinate_workers as worker
    set gone_at = clock_timestamp()
    where worker.id = worker_id and worker.gone_at is null;
    if not found then
        perform _procrastinate_refuse_worker(worker_id);
    end if;
    perform _procrastinate_take_back_jobs(worker_id, 'release', 2147483647);
end;
$$;

comment on function procrastinate_unregister_worker is
'Leave in good order: the jobs that the worker still holds wait again, without burning an attempt. '
'Errors: PC004; 22023. Example: select procrastinate_unregister_worker(7).';
