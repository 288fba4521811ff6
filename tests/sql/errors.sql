-- Every bad argument is refused with 22023, a message that names it, and a hint.
begin;
\ir support/arrange.sql
select plan(2 * 121 + 6);

-- Calls that are right but for one argument: a template, and bad values of that argument.

create temporary table refused (argument text, statement text);

insert into refused
select
    wrong.argument,
    format(call.statement, wrong.value)
from (
    values
    ('procrastinate_defer_job(%s)', 'task_name', array['null', $$''$$, $$repeat('x', 513)$$]),
    (
        $$procrastinate_defer_job('t', args => %s)$$, 'args',
        array['null', $$'[]'$$, $$'1'$$, $$'"text"'$$, $$'null'$$, $$'true'$$]
    ),
    (
        $$procrastinate_defer_job('t', queue_name => %s)$$, 'queue_name',
        array[$$''$$, $$repeat('x', 513)$$]
    ),
    ($$procrastinate_defer_job('t', lock => %s)$$, 'lock', array[$$''$$, $$repeat('x', 513)$$]),
    (
        $$procrastinate_defer_job('t', queueing_lock => %s)$$, 'queueing_lock',
        array[$$''$$, $$repeat('x', 513)$$]
    ),
    (
        $$procrastinate_defer_job('t', scheduled_at => %s)$$, 'scheduled_at',
        array[$$'infinity'$$, $$'-infinity'$$, $$'10000-01-01'$$, $$'0002-01-01 bc'$$]
    ),
    (
        $$procrastinate_defer_job('t', on_conflict => %s)$$, 'on_conflict',
        array['null', $$''$$, $$'ignore'$$, $$'RAISE'$$]
    ),
    (
        'procrastinate_defer_jobs(%s)', 'jobs',
        array['null', $$'{}'$$, $$'1'$$, $$'[1]'$$, $$'[null]'$$, $$'[{}]'$$, $$'[{"a": 1}]'$$]
    ),
    ('procrastinate_declare_task(%s)', 'task_name', array['null', $$''$$, $$repeat('x', 513)$$]),
    ($$procrastinate_declare_task('t', queue_name => %s)$$, 'queue_name', array[$$''$$]),
    ($$procrastinate_declare_task('t', lock => %s)$$, 'lock', array[$$''$$]),
    ($$procrastinate_declare_task('t', max_attempts => %s)$$, 'max_attempts', array['0', '-1']),
    (
        $$procrastinate_declare_task('t', backoff => %s)$$, 'backoff',
        array['null', $$''$$, $$'quadratic'$$]
    ),
    (
        $$procrastinate_declare_task('t', retry_delay => %s)$$, 'retry_delay',
        array[$$'-1 second'$$, $$'2000 years'$$]
    ),
    (
        $$procrastinate_declare_task('t', max_retry_delay => %s)$$, 'max_retry_delay',
        array[$$'-1 second'$$, $$'2000 years'$$]
    ),
    (
        $$procrastinate_declare_task('t', jitter => %s)$$, 'jitter',
        array['null', '-0.1', '1.1', $$'nan'$$]
    ),
    (
        $$procrastinate_declare_task('t', timeout => %s)$$, 'timeout',
        array[$$'0'$$, $$'-1 second'$$]
    ),
    (
        $$procrastinate_declare_task('t', keep_finished => %s)$$, 'keep_finished',
        array[$$'-1 day'$$]
    ),
    ($$procrastinate_declare_task('t', max_lost => %s)$$, 'max_lost', array['null', '-1']),
    ('procrastinate_register_worker(%s)', 'name', array[$$''$$, $$repeat('x', 513)$$]),
    (
        'procrastinate_register_worker(heartbeat_interval => %s)', 'heartbeat_interval',
        array['null', $$'0'$$, $$'-1 second'$$, $$'2 hours'$$]
    ),
    (
        'procrastinate_register_worker(lease => %s)', 'lease',
        array['null', $$'0'$$, $$'1 second'$$, $$'2 days'$$]
    ),
    ('procrastinate_unregister_worker(%s)', 'worker_id', array['null']),
    ('procrastinate_heartbeat(%s)', 'worker_id', array['null']),
    (
        $$procrastinate_heartbeat(pg_temp.worker(), '{1}', %s)$$, 'attempts',
        array['null', $$'{}'$$, $$'{1, 2}'$$]
    ),
    ('procrastinate_fetch_jobs(%s)', 'worker_id', array['null']),
    (
        'procrastinate_fetch_jobs(pg_temp.worker(), %s)', 'queue_names',
        array[$$'{}'$$, $$'{null}'$$, $$'{mail, null}'$$]
    ),
    (
        'procrastinate_fetch_jobs(pg_temp.worker(), max_jobs => %s)', 'max_jobs',
        array['null', '0', '-1']
    ),
    ('procrastinate_fetch_job(%s)', 'worker_id', array['null']),
    ('procrastinate_fetch_job(pg_temp.worker(), %s)', 'queue_names', array[$$'{}'$$]),
    ('procrastinate_finish_job(%s, 1)', 'job_id', array['null']),
    ('procrastinate_finish_job(1, %s)', 'attempt', array['null']),
    (
        'procrastinate_finish_job(1, 1, %s)', 'status',
        array['null', $$''$$, $$'todo'$$, $$'doing'$$, $$'cancelled'$$, $$'aborting'$$, $$'done'$$]
    ),
    ($$procrastinate_fail_job(%s, 1, 'error')$$, 'job_id', array['null']),
    ($$procrastinate_fail_job(1, %s, 'error')$$, 'attempt', array['null']),
    ('procrastinate_retry_job(%s, 1)', 'job_id', array['null']),
    ('procrastinate_retry_job(1, %s)', 'attempt', array['null']),
    (
        'procrastinate_retry_job(1, 1, %s)', 'retry_in',
        array[$$'-1 second'$$, $$'2000 years'$$]
    ),
    (
        'procrastinate_finish_jobs(%s)', 'outcomes',
        array['null', $$'{}'$$, $$'[1]'$$, $$'[null]'$$, $$'[{}]'$$]
    ),
    ($$procrastinate_release_jobs(%s, '{}')$$, 'worker_id', array['null']),
    ('procrastinate_release_jobs(1, %s)', 'job_ids', array['null', $$'{null}'$$]),
    (
        $$procrastinate_release_jobs(1, '{1}', %s)$$, 'attempts',
        array[$$'{}'$$, $$'{null}'$$, $$'{1,1}'$$]
    ),
    ('procrastinate_cancel_job(%s)', 'job_id', array['null']),
    ('procrastinate_rerun_job(%s)', 'job_id', array['null']),
    ('procrastinate_rescue_jobs(max_jobs => %s)', 'max_jobs', array['null', '0', '-1']),
    ('procrastinate_pause_queue(%s)', 'queue_name', array['null', $$''$$]),
    ('procrastinate_resume_queue(%s)', 'queue_name', array['null', $$''$$]),
    ('procrastinate_purge_jobs(%s)', 'older_than', array['null', $$'-1 second'$$]),
    (
        $$procrastinate_purge_jobs('0', statuses => %s)$$, 'statuses',
        array[$$'{todo}'$$, $$'{doing}'$$, $$'{failed, done}'$$, $$'{null}'$$]
    ),
    ($$procrastinate_purge_jobs('0', max_jobs => %s)$$, 'max_jobs', array['null', '0', '-1'])
) as call (statement, argument, bad_values)
cross join lateral unnest(call.bad_values) as bad (value)
cross join lateral (select call.argument, bad.value) as wrong;

update refused set statement = 'select ' || statement;

select throws_ok(refused.statement, '22023', null, refused.statement || ' is refused with 22023')
from refused;

select ok(
    (
        select refusal.message like refused.argument || ':%' and refusal.hint <> ''
        from pg_temp.refusal(refused.statement) as refusal
    ),
    format('%s says that %s is wrong, with a hint', refused.statement, refused.argument)
)
from refused;

-- The bounds themselves are within.

select lives_ok(allowed.statement, allowed.fact)
from (
    values
    (
        'names may have 512 characters',
        $$select procrastinate_defer_job(
            repeat('é', 512), '{}', repeat('é', 512), 0, repeat('é', 512), repeat('é', 512)
        )$$
    ),
    (
        'a policy may be as strict as it gets',
        $$select procrastinate_declare_task(
            't', max_attempts => 1, retry_delay => '0', max_retry_delay => '0',
            jitter => 0, timeout => '1 microsecond', keep_finished => '0', max_lost => 0
        )$$
    ),
    (
        'a policy may be as generous as it gets',
        $$select procrastinate_declare_task(
            't', max_attempts => null, retry_delay => '1000 years', max_retry_delay => '1000 years',
            jitter => 1, timeout => null, keep_finished => null, max_lost => 2147483647
        )$$
    ),
    (
        'a worker may beat ten times a second and keep its lease for a day',
        $$select procrastinate_register_worker(repeat('x', 512), '0.1 seconds', '1 day')$$
    ),
    (
        'a job may be scheduled for the last year that drivers can represent',
        $$select procrastinate_defer_job('t', scheduled_at => '9999-12-28 00:00:00+00')$$
    ),
    (
        'a job may be scheduled for long ago',
        $$select procrastinate_defer_job('t', scheduled_at => '0001-01-04 00:00:00+00')$$
    )
) as allowed (fact, statement);

select * from finish();
rollback;
