-- What must be true whoever writes to procrastinate_jobs: a function of ours, COPY, or a person in
-- psql.
--
-- Each trigger has a WHEN that is false on the hot path (insert, claim and finish of a job without
-- lock and schedule), so that there it costs one evaluated expression and no call. They are short,
-- since PostgreSQL parses them anew for each statement: the functions look at the rest.

create function _procrastinate_act(acts boolean)
returns void
language plpgsql
set search_path from current
as $$
begin
    perform set_config('procrastinate.acting', case when acts then 'on' else '' end, true);
end;
$$;

comment on function _procrastinate_act is
'Tell the triggers that the statements from here on are those of the queue itself that make jobs '
'ready, claim them or end their runs, and keep its rules without them; then that they no longer '
'are. An error in between undoes it.';

create function _procrastinate_job_inserted()
returns trigger
language plpgsql
set search_path from current
as $$
begin
    if new.status = 'doing' then
        raise exception 'a job cannot be inserted as running'
            using
                errcode = 'check_violation',
                hint = 'Insert it as todo; procrastinate_fetch_jobs starts it.';
    end if;

    new.due_at := null;
    if new.status <> 'todo' then
        new.ready_seq := null;
        return new;
    end if;

    if new.scheduled_at > clock_timestamp() then
        new.due_at := new.scheduled_at;
    end if;
    -- A job with a lock is never inserted ready: only _procrastinate_settle_locks makes it so.
    if new.lock is not null or new.due_at is not null then
        new.ready_seq := null;
    end if;
    return new;
end;
$$;

comment on function _procrastinate_job_inserted is
'Decide what a new job waits for. Not called for a job that is ready at once.';

create trigger procrastinate_job_inserted
before insert on procrastinate_jobs
for each row
when (
    new.lock is not null
    or new.scheduled_at is not null
    or new.status <> 'todo'
    or new.due_at is not null
)
execute function _procrastinate_job_inserted();

create function _procrastinate_jobs_inserted()
returns trigger
language plpgsql
set search_path from current
as $$
begin
    -- Asked first: to start the statement costs more than this, and most jobs have no lock. Not by
    -- _procrastinate_append_events: of millions that are loaded no array can be made.
    if exists (
        select from inserted where inserted.lock is not null and inserted.status = 'todo'
    ) then
        insert into procrastinate_lock_events (locks, is_early)
        select
            array_agg(named.lock order by named.place),
            min(named.first_id) <= coalesce(pg_sequence_last_value('procrastinate_jobs_drawn'), 0)
        from (
            select
                inserted.lock collate "C" as lock,
                min(inserted.id) as first_id,
                row_number() over (order by min(inserted.id)) as place
            from inserted
            where inserted.lock is not null and inserted.status = 'todo'
            group by inserted.lock collate "C"
        ) as named
        group by (named.place - 1) / 20
        order by (named.place - 1) / 20;
    end if;

    -- What is due later than this is told to workers by their heartbeat.
    perform _procrastinate_notify_queue(runnable.queue_name)
    from (
        select distinct inserted.queue_name
        from inserted
        where
            inserted.ready_seq is not null
            or inserted.due_at < clock_timestamp() + interval '10 seconds'
            or (inserted.lock is not null and inserted.status = 'todo')
    ) as runnable;
    return null;
end;
$$;

comment on function _procrastinate_jobs_inserted is
'After a statement that inserted jobs: events for their locks, in order of the jobs, and one '
'notification for each queue.';

create trigger procrastinate_jobs_inserted
after insert on procrastinate_jobs
referencing new table as inserted
for each statement
execute function _procrastinate_jobs_inserted();

create function _procrastinate_job_waits()
returns trigger
language plpgsql
set search_path from current
as $$
begin
    if old.status = 'todo'
        and new.lock is not distinct from old.lock
        and new.priority = old.priority
        and new.queue_name = old.queue_name
        and new.scheduled_at is not distinct from old.scheduled_at
    then
        return new;
    end if;

    new.due_at := case when new.scheduled_at > clock_timestamp() then new.scheduled_at end;
    if new.lock is null and new.due_at is null then
        new.ready_seq := coalesce(new.ready_seq, nextval('procrastinate_ready_seq'));
    else
        new.ready_seq := null;
    end if;

    if new.lock is not null then
        insert into procrastinate_lock_events (locks, is_early)
        values (
            array[new.lock],
            old.status not in ('todo', 'doing')
            or new.lock is distinct from old.lock
            or new.priority <> old.priority
        );
    end if;
    perform _procrastinate_notify_queue(new.queue_name);
    return new;
end;
$$;

comment on function _procrastinate_job_waits is
'Decide what a job waits for that has come back to waiting (retry, rescue, hand-back, rerun), '
'or whose place a person has changed.';

create trigger procrastinate_job_waits
before update on procrastinate_jobs
for each row
when (
    new.status = 'todo'
    and (
        old.status <> 'todo' or current_setting('procrastinate.acting', true) is distinct from 'on'
    )
)
execute function _procrastinate_job_waits();

create function _procrastinate_job_leaves_lock()
returns trigger
language plpgsql
set search_path from current
as $$
begin
    if tg_op = 'UPDATE' and new.status = 'doing' and new.priority <> old.priority then
        -- That is its place if it comes to wait again.
        insert into procrastinate_lock_events (locks, is_early) values (array[old.lock], true);
        return new;
    end if;
    if tg_op = 'UPDATE' and not (
        (
            old.finished_at is null
            and (new.finished_at is not null or new.lock is distinct from old.lock)
        )
        or (old.ready_seq is not null and new.ready_seq is null and new.status = 'todo')
    ) then
        return new;
    end if;
    insert into procrastinate_lock_events (locks) values (array[old.lock]);

    -- Whose turn is next is not decided here: wake whoever can find out, and whoever is likely to
    -- run it.
    perform _procrastinate_notify_queue(old.queue_name);
    perform _procrastinate_notify_queue(job.queue_name)
    from procrastinate_jobs as job
    where job.lock = old.lock and job.status = 'todo' and job.id <> old.id
    order by job.priority desc, job.id + 0
    limit 1;

    if tg_op = 'DELETE' then
        return old;
    end if;
    return new;
end;
$$;

comment on function _procrastinate_job_leaves_lock is
'Note that another job of a lock may be next: this one was finished, cancelled, deleted, given '
'another lock, or is no longer ready; or that it runs and would come back to another place.';

create trigger procrastinate_job_leaves_lock
before update on procrastinate_jobs
for each row
-- What ends runs does this itself, once for all of them.
when (
    old.lock is not null and current_setting('procrastinate.acting', true) is distinct from 'on'
)
execute function _procrastinate_job_leaves_lock();

-- After: a trigger before the deletion would lock each row once more, and log that.
create trigger procrastinate_job_deleted
after delete on procrastinate_jobs
for each row
when (
    old.lock is not null
    and old.finished_at is null
    and current_setting('procrastinate.acting', true) is distinct from 'on'
)
execute function _procrastinate_job_leaves_lock();

create function _procrastinate_check_edit()
returns trigger
language plpgsql
set search_path from current
as $$
begin
    if new.id <> old.id
        or (
            new.attempts <> old.attempts
            and not (old.status = 'doing' and new.status <> 'doing')
        )
        or (
            old.status = 'doing'
            and (
                new.lock is distinct from old.lock
                or (new.status = 'doing' and new.worker_id <> old.worker_id)
            )
        )
        -- Only the settler knows whose turn it is.
        or (new.lock is not null and old.ready_seq is null and new.ready_seq is not null)
        or (
            new.status <> old.status
            and not case old.status
                when 'todo' then
                    new.ready_seq is null
                    and case new.status
                        when 'doing' then
                            old.ready_seq is not null
                            and new.worker_id is not null and new.started_at is not null
                        when 'cancelled' then new.finished_at is not null
                        else false
                    end
                when 'doing' then
                    new.attempts = old.attempts + 1
                    and case new.status
                        when 'todo' then new.worker_id is null
                        when 'cancelled' then false
                        else new.finished_at is not null
                    end
                else new.status = 'todo' and new.finished_at is null and new.worker_id is null
            end
        )
    then
        perform _procrastinate_refuse_edit(old.id, old.status, new.status);
    end if;
    return new;
end;
$$;

comment on function _procrastinate_check_edit is
'Refuse an edit that skips the state machine.';

create function _procrastinate_refuse_edit(
    job_id bigint,
    was procrastinate_job_status,
    becomes procrastinate_job_status
)
returns void
language plpgsql
set search_path from current
as $$
begin
    raise exception 'job % cannot be edited from % to % like this', job_id, was, becomes
        using
            errcode = 'check_violation',
            hint = case
                when becomes = was
                    then 'The id and the attempts stay as they are; so do the lock and the worker '
                        'of a running job. Only the queue makes a job with a lock ready.'
                when becomes = 'doing' then 'Call procrastinate_fetch_jobs to start a job.'
                when was = 'doing' and becomes = 'todo'
                    then 'Call procrastinate_retry_job or procrastinate_fail_job.'
                when was = 'doing' and becomes = 'cancelled'
                    then 'Call procrastinate_cancel_job with abort => true.'
                when was = 'doing' then 'Call procrastinate_finish_job.'
                when becomes = 'todo' then 'Call procrastinate_rerun_job.'
                when was = 'todo' then 'Call procrastinate_cancel_job.'
                else 'A finished job stays as it is; procrastinate_rerun_job starts it afresh.'
            end;
end;
$$;

comment on function _procrastinate_refuse_edit is
'Raise check_violation for an edit that skips the state machine, and say what to call instead.';

-- Fires first: triggers of one kind run in the order of their names.
create trigger procrastinate_a_check_edit
before update on procrastinate_jobs
for each row
when (current_setting('procrastinate.acting', true) is distinct from 'on')
execute function _procrastinate_check_edit();
