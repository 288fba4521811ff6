-- The obvious way to run jobs with a lock one at a time: what docs/decisions/0002-locks.md rejects.
--
-- A job is ready as soon as its time has come. A fetch that meets one whose lock is taken parks it
-- (no ready_seq, no due_at); whoever finishes, cancels, deletes or moves a job wakes the next one
-- of its lock in the same transaction. So does a retry, a rescue, a hand-back, a promotion or an
-- edit, so that what fails is the idea, not one who forgot. Lock events are appended as before,
-- and nobody reads them.
--
--     PROCRASTINATE_OVERLAY=tests/python/obvious_algorithm.sql make test-python TESTS=…
--     make stress OVERLAY=tests/python/obvious_algorithm.sql

begin;

create or replace function _procrastinate_free_heads(max_locks integer)
returns table (heads bigint[], is_more boolean, busy boolean)
language sql
set search_path from current
as $$ select array[]::bigint[], false, false where max_locks > 0 $$;

-- So that the triggers below see all that the queue does.
create or replace function _procrastinate_act(acts boolean)
returns void
language sql
set search_path from current
as $$ select where acts $$;

create or replace function _procrastinate_pick(queue_names text[], max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    picked bigint[] := array[]::bigint[];
    met record;
begin
    while cardinality(picked) < max_jobs loop
        select job.id, job.lock into met
        from procrastinate_jobs as job
        where
            job.ready_seq + 0 is not null
            and job.id <> all(picked)
            and (queue_names is null or job.queue_name = any(queue_names))
        order by job.priority desc, job.ready_seq
        limit 1
        for update skip locked;
        exit when not found;

        if
            met.lock is null
            or (
                met.id = (
                    select first.id from procrastinate_jobs as first
                    where first.lock = met.lock and first.status = 'todo'
                    order by first.priority desc, first.id + 0
                    limit 1
                )
                and not exists (
                    select from procrastinate_jobs as running
                    where running.lock = met.lock and running.status = 'doing'
                )
            )
        then
            picked := picked || met.id;
        else
            update procrastinate_jobs as job set ready_seq = null where job.id = met.id;
        end if;
    end loop;
    return picked;
end;
$$;

create function _procrastinate_wake(lock text, but_not bigint)
returns void
language plpgsql
set search_path from current
as $$
begin
    -- What the queue's own triggers let nobody else do.
    perform set_config('procrastinate.acting', 'on', true);
    update procrastinate_jobs as job
    set ready_seq = nextval('procrastinate_ready_seq')
    where
        job.id = (
            select next.id
            from procrastinate_jobs as next
            where next.lock = _procrastinate_wake.lock and next.status = 'todo' and next.id <> but_not
            order by next.priority desc, next.id + 0
            limit 1
        )
        and job.status = 'todo'
        and num_nonnulls(job.ready_seq, job.due_at) = 0;
    perform set_config('procrastinate.acting', '', true);
end;
$$;

create or replace function _procrastinate_job_leaves_lock()
returns trigger
language plpgsql
set search_path from current
as $$
begin
    if tg_op = 'DELETE' then
        perform _procrastinate_wake(old.lock, old.id);
        return old;
    end if;
    if new.finished_at is not null or new.lock is distinct from old.lock then
        perform _procrastinate_wake(old.lock, old.id);
    end if;
    return new;
end;
$$;

-- Fires after the queue's own triggers, which leave a job with a lock for the settler.
create function _procrastinate_is_ready()
returns trigger
language plpgsql
set search_path from current
as $$
begin
    new.ready_seq := nextval('procrastinate_ready_seq');
    if tg_op = 'UPDATE' then
        perform _procrastinate_wake(new.lock, new.id);
    end if;
    return new;
end;
$$;

create trigger procrastinate_z_inserted
before insert on procrastinate_jobs
for each row
when (new.lock is not null and new.status = 'todo' and new.due_at is null)
execute function _procrastinate_is_ready();

-- All but parking, which takes a turn away and changes nothing else.
create trigger procrastinate_z_waits
before update on procrastinate_jobs
for each row
when (
    new.lock is not null
    and new.status = 'todo'
    and num_nonnulls(new.ready_seq, new.due_at) = 0
    and (
        old.ready_seq is null
        or (new.lock, new.priority, new.queue_name, new.scheduled_at)
        is distinct from (old.lock, old.priority, old.queue_name, old.scheduled_at)
    )
)
execute function _procrastinate_is_ready();

commit;
