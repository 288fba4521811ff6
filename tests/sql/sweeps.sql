-- What appears below a floor, found a slice at a time.
begin;
\ir support/arrange.sql
select plan(13);

create function pg_temp.turn(task text)
returns bigint
language sql
as $$ select job.ready_seq from procrastinate_jobs as job where job.task_name = task $$;

create function pg_temp.sweep_at(key text, delay integer)
returns void
language sql
as $$
    select _procrastinate_put_off(key, delay)
$$;

-- As a survey leaves it: levels, floors, up to where there was little to pass, and when to sweep.
insert into procrastinate_levels (queue_name, priority) values ('post', 5), ('post', 0), ('', 0);
select setval('procrastinate_ready_seq', 100000);
select _procrastinate_set_floor(noted.key, noted.floor)
from (
    values
    ('post 5', 1000), ('post 0', 90000), (' 0', 90000), ('bottom post', 2000), ('bottom ', 2000)
) as noted (key, floor);

insert into procrastinate_jobs (task_name, queue_name, priority, ready_seq) values
('late, urgent', 'post', 5, 10), ('late', 'post', 0, 20), ('late, too', 'post', 0, 21),
('late, beyond', 'post', 0, 80000),
('above', 'post', 5, 1000), ('new', 'post', 7, 30), ('newer', 'post', -7, 40);

select procrastinate_register_worker() as worker \gset
select pg_temp.sweep_at('post', 900);
select procrastinate_heartbeat(:worker, queue_names => '{post}');
select is(pg_temp.turn('late'), 20::bigint, 'nobody sweeps before it is time');

-- Not this very millisecond, in which it would not be over yet.
select pg_temp.sweep_at('post', -10);
select procrastinate_heartbeat(:worker, queue_names => '{post}');
select results_eq(
    $$select pg_temp.turn(named.task) > 100000
    from unnest(array['late, urgent', 'late', 'late, beyond']) as named (task)$$,
    array[true, true, true],
    'a heartbeat gives what lies below the floors a fresh turn'
);
select cmp_ok(
    pg_temp.turn('late'), '<', pg_temp.turn('late, too'), 'in the order of their turns'
);
select is(pg_temp.turn('above'), 1000::bigint, 'what lies above keeps its turn');
select results_eq(
    'select priority from procrastinate_levels where queue_name = ''post'' order by priority',
    array[-7, 0, 5, 7],
    'priorities that were not in use are noted'
);
select is(pg_temp.turn('new'), 30::bigint, 'whose jobs keep their turns');
select ok(
    not _procrastinate_looks_from_floors('post'),
    'with nothing left to pass looks begin at the start again'
);

-- With much to pass, a slice at a time.
insert into procrastinate_jobs (task_name, ready_seq)
select 'gone', number from generate_series(1, 80000, 4) as number;
delete from procrastinate_jobs where task_name = 'gone';
insert into procrastinate_jobs (task_name, ready_seq) values ('lowest', 10), ('low', 60000);
select pg_temp.sweep_at('', 0);

select _procrastinate_sweep('');
select cmp_ok(pg_temp.turn('lowest'), '>', 100000::bigint, 'the lowest slice comes first');
select ok(_procrastinate_looks_from_floors(''), 'looks go on at the floors');
select _procrastinate_sweep('') from generate_series(1, 5);
select cmp_ok(pg_temp.turn('low'), '>', 100000::bigint, 'then the next');
insert into procrastinate_jobs (task_name, ready_seq) values ('lower', 11);
select _procrastinate_sweep('') from generate_series(1, 5);
select cmp_ok(pg_temp.turn('lower'), '>', 100000::bigint, 'and the lowest again');

-- If no heartbeat comes along.
insert into procrastinate_jobs (task_name, ready_seq) values ('late again', 12);
select ok(
    procrastinate_next_due() between interval '0' and interval '3 seconds',
    'a worker is told when to sweep itself'
);
select pg_temp.sweep_at('', -2100);
select _procrastinate_looks_from_floors('');
select pg_temp.sweep_at('', -2100);
select _procrastinate_looks_from_floors('');
select cmp_ok(pg_temp.turn('late again'), '>', 100000::bigint, 'then a fetch sweeps');

select * from finish();
rollback;
