-- Say once, for producers and workers in every language, how the jobs of a task are to be treated.

create function procrastinate_declare_task(
    task_name text,
    queue_name text = null,
    priority integer = null,
    lock text = null,
    max_attempts integer = 1,
    backoff text = 'exponential',
    retry_delay interval = '1 second',
    max_retry_delay interval = '1 hour',
    jitter double precision = 0.1,
    timeout interval = null,
    keep_finished interval = null,
    max_lost integer = 5
)
returns void
language plpgsql
set search_path from current
as $$
begin
    perform _procrastinate_check_name('task_name', task_name);
    perform _procrastinate_check_name('queue_name', coalesce(queue_name, 'default'));
    perform _procrastinate_check_name('lock', coalesce(lock, 'none'));
    perform _procrastinate_check_policy(max_attempts, backoff, jitter, timeout, max_lost);
    perform
        _procrastinate_check_interval('retry_delay', retry_delay),
        _procrastinate_check_interval('max_retry_delay', max_retry_delay),
        _procrastinate_check_interval('timeout', timeout),
        _procrastinate_check_interval('keep_finished', keep_finished);

    -- A worker declares its tasks when it starts, and not again when a crash took that back.
    perform _procrastinate_commit_durably();
    insert into procrastinate_tasks as declared (
        task_name, queue_name, priority, lock, max_attempts, backoff,
        retry_delay, max_retry_delay, jitter, max_lost, timeout, keep_finished
    )
    values (
        task_name, queue_name, priority, lock, max_attempts, backoff,
        coalesce(retry_delay, '1 second'), coalesce(max_retry_delay, '1 hour'), jitter, max_lost,
        timeout, keep_finished
    )
    on conflict on constraint procrastinate_tasks_pkey do update
    set
        queue_name = excluded.queue_name,
        priority = excluded.priority,
        lock = excluded.lock,
        max_attempts = excluded.max_attempts,
        backoff = excluded.backoff,
        retry_delay = excluded.retry_delay,
        max_retry_delay = excluded.max_retry_delay,
        jitter = excluded.jitter,
        max_lost = excluded.max_lost,
        timeout = excluded.timeout,
        keep_finished = excluded.keep_finished
    -- A thousand workers that start with the same declarations write nothing.
    where declared is distinct from excluded;
end;
$$;

comment on function procrastinate_declare_task is
'Record the defaults and the policy of a task, in place of what was declared before. queue_name, '
'priority and lock are what a job takes that is deferred without. After max_attempts failed runs a '
'job is failed (null: never); until then it is retried after retry_delay, which grows by backoff '
'(constant, linear or exponential) up to max_retry_delay, less a random share of up to jitter (0 '
'to 1) of it. timeout is the longest that a run may take; keep_finished how long finished jobs '
'stay (null: for ever, zero: not at all); max_lost how many runs may be lost with their worker. '
'Error: 22023 bad argument. Example: select procrastinate_declare_task(''send_email'', queue_name '
'=> ''mail'', max_attempts => 5).';

create function _procrastinate_check_policy(
    max_attempts integer,
    backoff text,
    jitter double precision,
    timeout interval,
    max_lost integer
)
returns void
language plpgsql
set search_path from current
as $$
begin
    if max_attempts < 1 then
        perform _procrastinate_refuse('max_attempts', 'must be at least 1, or null for no limit');
    elsif coalesce(backoff not in ('constant', 'linear', 'exponential'), true) then
        perform _procrastinate_refuse('backoff', 'must be constant, linear or exponential');
    elsif coalesce(jitter not between 0 and 1, true) then
        perform _procrastinate_refuse('jitter', 'must lie between 0 and 1');
    elsif timeout <= interval '0' then
        perform _procrastinate_refuse('timeout', 'must be longer than zero, or null for no limit');
    elsif coalesce(max_lost < 0, true) then
        perform _procrastinate_refuse('max_lost', 'must be at least 0');
    end if;
end;
$$;

comment on function _procrastinate_check_policy is
'Raise 22023 for the first part of a policy that is wrong.';

create function _procrastinate_retry_delay(task_name text, failures integer)
returns interval
language plpgsql
set search_path from current
as $$
declare
    task procrastinate_tasks;
    factor double precision;
    seconds double precision;
begin
    select declared.* into task
    from procrastinate_tasks as declared
    where declared.task_name = _procrastinate_retry_delay.task_name;

    factor := case task.backoff
        when 'constant' then 1
        when 'linear' then failures
        else 2 ^ least(failures - 1, 60)
    end;
    seconds := least(
        extract(epoch from task.retry_delay) * factor, extract(epoch from task.max_retry_delay)
    );
    -- Numeric: the product of two floats that small is an error.
    return make_interval(
        secs => seconds * (1 - task.jitter::numeric * random()::numeric)::double precision
    );
end;
$$;

comment on function _procrastinate_retry_delay is
'How long to wait after this many failed runs: exponential backoff with a ceiling and with jitter '
'downwards, so that the ceiling holds (M. Brooker, Exponential Backoff And Jitter, 2015).';
