-- After a restore or a switch-over: what lives outside the rows is made to fit them again.

create function procrastinate_repair(give_up_silent boolean = false)
returns table (mended text, amount bigint)
language plpgsql
set search_path from current
as $$
begin
    perform _procrastinate_check_read_committed();
    perform _procrastinate_become_settler(wait => true);

    return query select * from _procrastinate_repair_sequences();

    mended := 'silent workers given up';
    update procrastinate_workers as worker
    set gone_at = clock_timestamp()
    where
        give_up_silent and worker.gone_at is null
        -- Silent, too, is who was last heard of by a server whose clock is ahead of this one's.
        and clock_timestamp() not between
        worker.last_heartbeat and worker.last_heartbeat + worker.heartbeat_interval * 2.5;
    get diagnostics amount = row_count;
    return next;

    mended := 'jobs of workers that are gone taken back';
    select count(*) into amount
    from (
        select distinct job.worker_id
        from procrastinate_jobs as job
        left join procrastinate_workers as worker on job.worker_id = worker.id
        where job.status = 'doing' and (worker.id is null or worker.gone_at is not null)
    ) as gone
    cross join lateral _procrastinate_take_back_jobs(gone.worker_id, null);
    return next;

    mended := 'locks looked at afresh';
    delete from procrastinate_lock_floors;
    perform setval('procrastinate_jobs_settled', 1);
    perform setval('procrastinate_jobs_drawn_before', 1);
    insert into procrastinate_lock_events (locks)
    select distinct array[job.lock]
    from procrastinate_jobs as job
    where job.lock is not null and job.status in ('todo', 'doing');
    get diagnostics amount = row_count;
    return next;
end;
$$;

comment on function procrastinate_repair is
'Mend what a restore or a switch-over can leave behind: set sequences that are behind the data, '
'take back running jobs of workers that are gone or unknown, have every lock looked at afresh. '
'With give_up_silent, workers that have not been heard of for two and a half heartbeats are gone, '
'too: say so when none of them will find its way here; else each has its lease. '
'Returns what it looked at and how much it mended. Harmless at any time. Error: '
'25001. Example: select * from procrastinate_repair(give_up_silent => true).';

create function _procrastinate_repair_sequences()
returns table (mended text, amount bigint)
language plpgsql
set search_path from current
as $$
declare
    behind record;
begin
    for behind in
        select sequence.name, sequence.highest
        from (
            select 'procrastinate_jobs_id_seq' as name, max(job.id) as highest
            from procrastinate_jobs as job
            union all
            select 'procrastinate_ready_seq', max(job.ready_seq) from procrastinate_jobs as job
            union all
            select
                'procrastinate_workers_id_seq',
                greatest(
                    (select max(worker.id) from procrastinate_workers as worker),
                    (select max(job.worker_id) from procrastinate_jobs as job)
                )
            union all
            select 'procrastinate_lock_events_id_seq', max(event.id)
            from procrastinate_lock_events as event
        ) as sequence
    loop
        mended := format('%s set forward', behind.name);
        amount := behind.highest - coalesce(pg_sequence_last_value(behind.name::regclass), 0);
        continue when coalesce(amount, 0) <= 0;
        perform setval(behind.name::regclass, behind.highest);
        return next;
    end loop;
end;
$$;

comment on function _procrastinate_repair_sequences is
'Set the sequences forward that are behind the highest value in use.';
