-- After a restore or a switch-over: what lives outside the rows is made to fit them again.

create function procrastinate_repair()
returns table (mended text, amount bigint)
language plpgsql
set search_path from current
as $$
begin
    perform _procrastinate_check_read_committed();
    perform _procrastinate_become_settler(wait => true);

    return query select * from _procrastinate_repair_sequences();

    mended := 'jobs of workers that are gone taken back';
    select count(*) into amount
    from _procrastinate_end_runs(array(
        select (job.id, null, job.worker_id, 'lose', null, null, null, null)::procrastinate_outcome
        from procrastinate_jobs as job
        where
            job.status = 'doing'
            and not exists (
                select from procrastinate_workers as worker
                where worker.id = job.worker_id and worker.gone_at is null
            )
        for update skip locked
    ));
    return next;

    mended := 'locks looked at afresh';
    insert into procrastinate_lock_events (lock)
    select distinct job.lock
    from procrastinate_jobs as job
    where job.lock is not null and job.status in ('todo', 'doing');
    get diagnostics amount = row_count;
    return next;
end;
$$;

comment on function procrastinate_repair is
'Mend what a restore or a switch-over can leave behind: set sequences that are behind the data, '
'take back running jobs of workers that are gone or unknown, have every lock looked at afresh. '
'Returns what it looked at and how much it mended. Harmless at any time. Error: '
'25001. Example: select * from procrastinate_repair().';

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
