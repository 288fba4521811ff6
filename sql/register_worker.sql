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

    -- A crash that took it back would let the next worker have the same id.
    perform _procrastinate_commit_durably();
    insert into procrastinate_workers as worker (name, heartbeat_interval, lease, awake_since)
    values (name, heartbeat_interval, lease, _procrastinate_watched_since(heartbeat_interval))
    returning worker.id into worker_id;
    return worker_id;
end;
$$;

comment on function procrastinate_register_worker is
'Register a worker and return its id. It is to call procrastinate_heartbeat every '
'heartbeat_interval; after two and a half of them in silence it is given up if its connection is '
'gone too, after its lease in any case. Error: 22023. Example: select '
'procrastinate_register_worker(''web-1'').';

create function _procrastinate_watched_since(heartbeat_interval interval)
returns timestamptz
language plpgsql
set search_path from current
as $$
declare
    called_at constant timestamptz := clock_timestamp();
begin
    return (
        select coalesce(min(watcher.awake_since), called_at)
        from procrastinate_workers as watcher
        where
            watcher.last_heartbeat <= called_at
            and watcher.last_heartbeat
            > called_at - _procrastinate_watched_since.heartbeat_interval * 2
    );
end;
$$;

comment on function _procrastinate_watched_since is
'Since when a worker that registers now can judge the silence of others: it takes over from '
'whoever beat a moment ago, even if that one is gone since. After an outage there is nobody.';

create function _procrastinate_commit_durably()
returns void
language plpgsql
set search_path from current
as $$
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
end;
$$;

comment on function _procrastinate_commit_durably is
'Let this transaction survive a crash, even where the session gave that up.';

create function procrastinate_unregister_worker(worker_id bigint)
returns void
language plpgsql
set search_path from current
as $$
begin
    update procrastinate_workers as worker
    set gone_at = clock_timestamp(), unregistered = true
    where worker.id = worker_id and worker.gone_at is null;
    if not found then
        perform _procrastinate_refuse_worker(worker_id);
    end if;
    perform _procrastinate_take_back_jobs(worker_id, 2147483647);
end;
$$;

comment on function procrastinate_unregister_worker is
'Leave in good order: the jobs that the worker still holds wait again, without burning an attempt; '
'those whose row somebody holds, with the next heartbeat of another. Errors: PC004; 22023. '
'Example: select procrastinate_unregister_worker(7).';
