-- What a worker listens to. That notifications arrive is tested from Python: a commit is needed.
begin;
select plan(11);

select results_eq(
    'select procrastinate_listen_channels()',
    array['procrastinate_any_queue'],
    'a worker of all queues listens to one channel'
);

select results_eq(
    $$select procrastinate_listen_channels(array['mail'])$$,
    array['procrastinate_queue#mail'],
    'a worker of one queue listens to its channel'
);

select set_eq(
    $$select procrastinate_listen_channels(array['mail', 'slow'])$$,
    array['procrastinate_queue#mail', 'procrastinate_queue#slow'],
    'a worker of several queues listens to each'
);

select results_eq(
    $$select procrastinate_listen_channels(array['mail', 'mail'])$$,
    array['procrastinate_queue#mail'],
    'a queue that is named twice is listened to once'
);

select results_eq(
    $$select procrastinate_listen_channels(array['Mail; "Ann''s"'])$$,
    array['procrastinate_queue#Mail; "Ann''s"'],
    'a channel has the name of its queue as it is'
);

select results_eq(
    $$select procrastinate_listen_channels(array[repeat('x', 43)])$$,
    array['procrastinate_queue#' || repeat('x', 43)],
    'a channel of 63 bytes has the name of its queue'
);

select is_empty(
    $$
    select queue.name
    from unnest(array[repeat('x', 44), repeat('é', 22), repeat('x', 512), repeat('é', 512)])
        as queue (name)
    cross join lateral procrastinate_listen_channels(array[queue.name]) as channel
    where octet_length(channel) > 63
    $$,
    'no channel is longer than the 63 bytes that PostgreSQL allows'
);

select is(
    (
        select count(distinct channel)
        from unnest(array['a', 'b']) as last (letter)
        cross join lateral procrastinate_listen_channels(array[repeat('x', 100) || last.letter])
            as channel
    ),
    2::bigint,
    'long names that differ at their end have different channels'
);

select lives_ok(
    format('listen %I', channel),
    'the longest name of a queue can be listened to'
)
from procrastinate_listen_channels(array[repeat('é', 512)]) as channel;

select lives_ok(
    $$select procrastinate_defer_job('send_email', queue_name => repeat('é', 512))$$,
    'a job of the longest name can be deferred'
);

select lives_ok(
    $$insert into procrastinate_jobs (task_name, queue_name, lock)
    values ('send_email', repeat('é', 512), 'ann')$$,
    'such a job can be inserted by hand, with a lock'
);

select * from finish();
rollback;
