-- The words of the protocol: the states of a job, and the rows that functions take and return.

create type procrastinate_job_status as enum (
    'todo',       -- waits for its turn, its time or its lock; `doing` when a worker fetches it
    'doing',      -- a worker runs it; ends in one of the states below, or `todo` for another run
    'succeeded',  -- finished: the worker said so
    'failed',     -- finished: its policy allows no further run
    'cancelled',  -- finished: cancelled before it was started
    'aborting',   -- never stored: the name exists for clients that know it
    'aborted'     -- finished: stopped on request while it ran
);

comment on type procrastinate_job_status is
'State of a job. Public functions take and return it as text.';

create type procrastinate_fetched_job as (
    id bigint,
    task_name text,
    args jsonb,
    queue_name text,
    priority integer,
    lock text,
    queueing_lock text,
    scheduled_at timestamptz,
    attempt integer,
    timeout interval
);

comment on type procrastinate_fetched_job is
'What a worker gets to run a job. `attempt` (1 on the first run) must be given back when the run '
'ends; `timeout` is the longest that the run may take by the policy of its task (null: no limit).';

create type procrastinate_outcome as (
    job_id bigint,
    attempt integer,
    worker_id bigint,
    action text,
    status procrastinate_job_status,
    result jsonb,
    error text,
    retry_in interval
);

comment on type procrastinate_outcome is
'How a run ended, as the functions that end runs hand it to each other. `action` is one of finish, '
'fail, retry, release (handed back in good order) and lose (its worker is gone).';

create type procrastinate_new_job as (
    id bigint,
    task_name text,
    args jsonb,
    queue_name text,
    priority integer,
    lock text,
    queueing_lock text,
    scheduled_at timestamptz
);

comment on type procrastinate_new_job is
'A job to be created, its defaults filled in, as the functions that defer hand it to each other.';

create type procrastinate_left_lock as (
    lock text,
    priority integer,
    job_id bigint,
    queue_name text
);

comment on type procrastinate_left_lock is
'A lock that a job no longer holds, with its place in the lock and its queue, as the functions '
'that end runs hand it on.';
