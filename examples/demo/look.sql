-- What became of the jobs of the demo. All that there is to know of them is in one table.

select
    job.task_name as task,
    job.queue_name as queue,
    job.status,
    count(*) as jobs,
    sum(job.attempts) as runs,
    sum(job.failures) as failed,
    count(distinct job.lock) as locks,
    date_trunc('milliseconds', max(job.finished_at - job.started_at)) as longest_run,
    date_trunc('milliseconds', max(job.finished_at - job.created_at)) as all_done_after
from procrastinate_jobs as job
group by job.task_name, job.queue_name, job.status
order by min(job.id);

-- Who ran them.

select
    worker.id as worker,
    worker.name,
    string_agg(distinct job.queue_name, ', ') as queues,
    count(*) as jobs
from procrastinate_workers as worker
inner join procrastinate_jobs as job on worker.id = job.worker_id
group by worker.id
order by worker.id;

-- The last error of a job is kept, also when a later attempt succeeded.

select
    job.id as job,
    job.task_name as task,
    job.status,
    job.attempts,
    job.result,
    split_part(job.error, e'\n', 1) as last_error
from procrastinate_jobs as job
where job.error is not null
order by job.id
limit 10;
