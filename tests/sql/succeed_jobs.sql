-- Runs that succeeded are closed by their numbers alone, and fenced like all others.
begin;
\ir support/arrange.sql
select plan(13);

create function pg_temp.succeed(tasks text[], attempts integer[], worker bigint = pg_temp.worker())
returns setof text
language sql
as $$
    select refused.ordinal || ' ' || refused.reason
    from procrastinate_succeed_jobs(
        worker,
        array(
            select pg_temp.id(named.task)
            from unnest(tasks) with ordinality as named (task, place)
            order by named.place
        ),
        attempts
    ) as refused
    order by refused.ordinal
$$;

select procrastinate_declare_task('fleeting', keep_finished => '0');
select procrastinate_declare_task('kept', keep_finished => '1 day');
select procrastinate_defer_job(named.task, lock => named.lock)
from (values ('a', 'x'), ('b', null), ('fleeting', 'y'), ('kept', null)) as named (task, lock);
select procrastinate_defer_job('a_next', lock => 'x');
select procrastinate_defer_job('fleeting_next', lock => 'y');
select pg_temp.fetch(10);

select is_empty($$select * from procrastinate_succeed_jobs(1, '{}', '{}')$$, 'none is a batch too');

select set_eq(
    $$select pg_temp.succeed('{b,a}', '{2,1}', 0)$$, array['1 not running', '2 not running'],
    'another worker closes nothing'
);

select set_eq(
    $$select pg_temp.succeed('{b,fleeting,a,a,kept}', '{2,1,1,1,1}')$$,
    array['1 not running', '4 duplicate'],
    'another attempt is refused, and so is the second of two; the others are applied'
);

select results_eq(
    $$select job.task_name, job.status::text, job.attempts
    from procrastinate_jobs as job where job.task_name in ('a', 'b', 'kept') order by job.id$$,
    $$values ('a', 'succeeded', 1), ('b', 'doing', 0), ('kept', 'succeeded', 1)$$,
    'a job has succeeded when its run was closed'
);

select is(
    (select count(*) from procrastinate_jobs as job where job.task_name = 'fleeting'), 0::bigint,
    'a job that is not to be kept is gone'
);

select ok(
    (
        select job.purge_at = job.finished_at + interval '1 day'
        from procrastinate_jobs as job where job.task_name = 'kept'
    ),
    'one that is to be kept for a while is deleted later'
);

select is(
    pg_temp.sorted(pg_temp.fetch(10)), 'a_next fleeting_next', 'the next of their locks follow'
);

prepare wrong as select * from procrastinate_succeed_jobs($1, $2, $3);
select throws_ok(
    format('execute wrong(%s, %L, %L)', given.worker, given.ids, given.attempts), '22023', null,
    given.fact
)
from (
    values
    ('null', '{1}', '{1}', 'without a worker it is refused'),
    ('1', null, '{1}', 'without jobs it is refused'),
    ('1', '{null}', '{1}', 'a null among the jobs is refused'),
    ('1', '{1}', null, 'without attempts it is refused'),
    ('1', '{1}', '{null}', 'a null among the attempts is refused'),
    ('1', '{1,2}', '{1}', 'fewer attempts than jobs are refused')
) as given (worker, ids, attempts, fact);

select * from finish();
rollback;
