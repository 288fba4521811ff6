-- Remove the queue, its jobs included, from the current schema: psql -f sql/uninstall.sql
--
-- Drops what install.sql made and nothing else, in one transaction. If something of yours depends
-- on it (a view of the jobs, say), nothing is dropped, and PostgreSQL says what depends.

\set ON_ERROR_STOP on
begin;

do $$
declare
    target constant text := current_schema();
    installed integer;
begin
    if to_regprocedure(quote_ident(target) || '.procrastinate_schema_version()') is null then
        raise exception 'procrastinate-sql is not installed in schema %', coalesce(target, '(none)')
            using errcode = 'PC003', hint = 'Put the schema that it is in first in search_path.';
    end if;

    execute format('select %I.procrastinate_schema_version()', target) into installed;
    if installed <> 1 then
        raise exception 'schema % holds version % of procrastinate-sql, not 1', target, installed
            using errcode = 'PC003', hint = 'Upgrade it first, or use the uninstall.sql of its version.';
    end if;
    perform set_config('search_path', format('%I, pg_temp', target), true);
end;
$$;

-- What roles.sql made, where it was run (with another procrastinate.role_prefix: say so again). The
-- roles stay, other databases may use them, and have no rights here any more.
do $$
declare
    prefix constant text := coalesce(
        nullif(current_setting('procrastinate.role_prefix', true), ''), 'procrastinate'
    );
    role_name text;
begin
    if to_regclass('procrastinate_own_jobs') is not null then
        drop view procrastinate_jobs_overview, procrastinate_own_jobs;
    end if;

    for role_name in
        select entry.grantee::regrole
        from pg_namespace as nsp
        cross join lateral aclexplode(nsp.nspacl) as entry
        inner join pg_roles as grantee on grantee.oid = entry.grantee
        where
            nsp.nspname = current_schema() and entry.privilege_type = 'USAGE'
            and grantee.rolname in (
                prefix || '_producer', prefix || '_worker', prefix || '_reader', prefix || '_admin'
            )
    loop
        execute format('revoke usage on schema %I from %s', current_schema(), role_name);
    end loop;
end;
$$;

drop function
    procrastinate_cancel_job,
    procrastinate_declare_task,
    procrastinate_defer_job,
    procrastinate_defer_jobs,
    procrastinate_fail_job,
    procrastinate_fetch_job,
    procrastinate_fetch_jobs,
    procrastinate_finish_job,
    procrastinate_finish_jobs,
    procrastinate_get_job,
    procrastinate_heartbeat,
    procrastinate_listen_channels,
    procrastinate_next_due,
    procrastinate_pause_queue,
    procrastinate_purge_jobs,
    procrastinate_register_worker,
    procrastinate_release_jobs,
    procrastinate_release_unknown_jobs,
    procrastinate_repair,
    procrastinate_rerun_job,
    procrastinate_rescue_jobs,
    procrastinate_resume_queue,
    procrastinate_retry_job,
    procrastinate_schema_version,
    procrastinate_succeed_jobs,
    procrastinate_unregister_worker,
    _procrastinate_act,
    _procrastinate_add_levels,
    _procrastinate_add_lock_floors,
    _procrastinate_append_events,
    _procrastinate_are_floors_in_use,
    _procrastinate_are_many,
    _procrastinate_await_settler,
    _procrastinate_be_admitted,
    _procrastinate_become_settler,
    _procrastinate_begins_at_floor,
    _procrastinate_carry_over_aborts,
    _procrastinate_channel,
    _procrastinate_check_batch,
    _procrastinate_check_fetch,
    _procrastinate_check_interval,
    _procrastinate_check_job,
    _procrastinate_check_list,
    _procrastinate_check_name,
    _procrastinate_check_outcomes,
    _procrastinate_check_policy,
    _procrastinate_check_read_committed,
    _procrastinate_choose,
    _procrastinate_claim,
    _procrastinate_commit_durably,
    _procrastinate_count_ready,
    _procrastinate_decide,
    _procrastinate_defer_once,
    _procrastinate_effort,
    _procrastinate_end_all,
    _procrastinate_end_run,
    _procrastinate_end_runs,
    _procrastinate_first_event,
    _procrastinate_first_of_levels,
    _procrastinate_floor,
    _procrastinate_floor_key,
    _procrastinate_floor_time,
    _procrastinate_floors_of,
    _procrastinate_floors_of_locks,
    _procrastinate_free_heads,
    _procrastinate_has_events,
    _procrastinate_heads_from_floors,
    _procrastinate_heads_from_start,
    _procrastinate_heads_of,
    _procrastinate_hold_heads,
    _procrastinate_hold_late,
    _procrastinate_hold_runs,
    _procrastinate_is_crowded,
    _procrastinate_is_era_over,
    _procrastinate_is_head,
    _procrastinate_is_to_be_swept,
    _procrastinate_keep_lock_floors,
    _procrastinate_keep_locks_safe,
    _procrastinate_leave_locks,
    _procrastinate_lock_entries,
    _procrastinate_lock_era,
    _procrastinate_locks_to_settle,
    _procrastinate_looks_from_floors,
    _procrastinate_make_due,
    _procrastinate_make_ready,
    _procrastinate_new_priorities,
    _procrastinate_next_events,
    _procrastinate_next_look,
    _procrastinate_next_queues,
    _procrastinate_note_effort,
    _procrastinate_note_lock_floors,
    _procrastinate_note_purge,
    _procrastinate_notify_queue,
    _procrastinate_notify_waiting,
    _procrastinate_part_by_floor,
    _procrastinate_peek,
    _procrastinate_peek_all,
    _procrastinate_pick,
    _procrastinate_pick_above_floors,
    _procrastinate_pick_from_all,
    _procrastinate_pick_from_named,
    _procrastinate_promote_due,
    _procrastinate_purge_at,
    _procrastinate_purge_due,
    _procrastinate_purge_finished,
    _procrastinate_put_off,
    _procrastinate_raise_floors,
    _procrastinate_raise_lock_floors,
    _procrastinate_read_interval,
    _procrastinate_read_jobs,
    _procrastinate_read_outcomes,
    _procrastinate_read_time,
    _procrastinate_ready_index,
    _procrastinate_refuse,
    _procrastinate_refuse_job,
    _procrastinate_refuse_new_job,
    _procrastinate_refuse_worker,
    _procrastinate_renew_lease,
    _procrastinate_repair_sequences,
    _procrastinate_request_abort,
    _procrastinate_retry_delay,
    _procrastinate_set_floor,
    _procrastinate_set_floor_time,
    _procrastinate_settle_locks,
    _procrastinate_settled_id,
    _procrastinate_silent_workers,
    _procrastinate_succeed,
    _procrastinate_survey,
    _procrastinate_sweep,
    _procrastinate_sweep_queues,
    _procrastinate_sweep_slice,
    _procrastinate_take_back_jobs,
    _procrastinate_take_events,
    _procrastinate_unready,
    _procrastinate_wait_for_place,
    _procrastinate_wake_ready,
    _procrastinate_watched_since,
    _procrastinate_without_paused;

drop table
    procrastinate_abort_requests,
    procrastinate_jobs,
    procrastinate_levels,
    procrastinate_lock_events,
    procrastinate_lock_floors,
    procrastinate_queues,
    procrastinate_tasks,
    procrastinate_workers;

-- Those of the triggers, which went with the tables.
drop function
    _procrastinate_check_edit,
    _procrastinate_job_inserted,
    _procrastinate_job_leaves_lock,
    _procrastinate_job_waits,
    _procrastinate_jobs_inserted,
    _procrastinate_refuse_edit;

drop type
    procrastinate_fetched_job,
    procrastinate_job_status,
    procrastinate_left_lock,
    procrastinate_new_job,
    procrastinate_outcome;

commit;
