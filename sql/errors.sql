-- How every function refuses a bad argument: one SQLSTATE, one form of message, nothing changed.

create function _procrastinate_refuse(argument text, problem text, hint text = null)
returns void
language plpgsql
set search_path from current
as $$
begin
    raise exception '%: %', argument, problem
        using errcode = '22023', hint = coalesce(hint, format('Give %s another value.', argument));
end;
$$;

comment on function _procrastinate_refuse is
'Raise 22023 (invalid_parameter_value) with a message that begins with the name of the argument.';

create function _procrastinate_check_name(argument text, value text)
returns void
language plpgsql
immutable
set search_path from current
as $$
begin
    if char_length(value) between 1 and 512 then
        return;
    end if;
    perform _procrastinate_refuse(argument, case
        when value is null then 'must not be null'
        else format('must have 1 to 512 characters, not %s', char_length(value))
    end);
end;
$$;

comment on function _procrastinate_check_name is
'Raise 22023 unless the value has 1 to 512 characters.';

create function _procrastinate_check_read_committed()
returns void
language plpgsql
set search_path from current
as $$
begin
    if current_setting('transaction_isolation') in ('read committed', 'read uncommitted') then
        return;
    end if;
    raise exception 'jobs cannot be fetched in a % transaction',
        current_setting('transaction_isolation')
        using errcode = '25001', hint = 'Call it in a short read committed transaction of its own.';
end;
$$;

comment on function _procrastinate_check_read_committed is
'Raise 25001 unless each statement sees what is committed: deciding who is next of a lock needs '
'that.';

create function _procrastinate_check_batch(
    argument text,
    batch jsonb,
    keys text[],
    first_ordinal integer = 1
)
returns void
language plpgsql
immutable
set search_path from current
as $$
declare
    bad record;
begin
    if coalesce(jsonb_typeof(batch) <> 'array', true) then
        perform _procrastinate_refuse(argument, 'must be a JSON array of objects');
    end if;

    select element.position, jsonb_typeof(element.value) as kind, element.value into bad
    from jsonb_array_elements(batch) with ordinality as element (value, position)
    where case
        when jsonb_typeof(element.value) = 'object'
            then element.value - keys <> '{}' or coalesce(element.value -> keys[1], 'null') = 'null'
        else true
    end
    limit 1;
    if not found then
        return;
    end if;

    perform _procrastinate_refuse(
        argument,
        format('element %s ', bad.position + first_ordinal - 1) || case
            when bad.kind <> 'object' then format('must be an object, not %s', bad.kind)
            when bad.value - keys = '{}' then format('has no %s', keys[1])
            else (
                select format('has an unknown key %I', left(unknown.key, 100))
                from jsonb_object_keys(bad.value - keys) as unknown (key)
                limit 1
            )
        end,
        format('Known keys: %s.', array_to_string(keys, ', '))
    );
end;
$$;

comment on function _procrastinate_check_batch is
'Raise 22023 unless the batch is an array of objects with known keys only, the first of them '
'always there.';

create function _procrastinate_check_list(argument text, list anyarray)
returns void
language plpgsql
immutable
set search_path from current
as $$
begin
    -- array_position() takes no array of arrays.
    if list is null or array_ndims(list) > 1 or array_position(list, null) is not null then
        perform _procrastinate_refuse(argument, 'must be a plain array without nulls');
    end if;
end;
$$;

comment on function _procrastinate_check_list is
'Raise 22023 unless the value is an array of one dimension, or empty, without nulls.';

create function _procrastinate_read_time(argument text, value text)
returns timestamptz
language plpgsql
stable
strict
set search_path from current
as $$
declare
    instant timestamptz;
begin
    begin
        instant := value::timestamptz;
    exception
        when data_exception then
            perform _procrastinate_refuse(argument, format('is not a time: %s', left(value, 100)));
    end;
    if instant not between '0001-01-03 00:00:00+00' and '9999-12-29 00:00:00+00' then
        perform _procrastinate_refuse(argument, 'must lie between the years 1 and 9999');
    end if;
    return instant;
end;
$$;

comment on function _procrastinate_read_time is
'Read a time out of a batch (null: null); 22023 if it is none.';

create function _procrastinate_read_interval(argument text, value jsonb)
returns interval
language plpgsql
stable
set search_path from current
as $$
declare
    duration interval;
begin
    begin
        duration := case jsonb_typeof(value)
            when 'number' then make_interval(secs => value::text::double precision)
            when 'string' then (value #>> '{}')::interval
        end;
    exception
        when data_exception then
            perform _procrastinate_refuse(
                argument, format('is not an interval: %s', left(value::text, 100))
            );
    end;
    perform _procrastinate_check_interval(argument, duration);
    return duration;
end;
$$;

comment on function _procrastinate_read_interval is
'Read an interval out of a batch, a number of seconds or a text; 22023 if it is none.';

create function _procrastinate_check_interval(argument text, value interval)
returns void
language plpgsql
immutable
set search_path from current
as $$
begin
    -- Intervals compare as if months had 30 days: one whose parts cancel each other out may look
    -- short, and be out of range when it is added to a time.
    if value not between interval '0' and interval '1000 years'
        or abs(extract(year from value)) > 1000
        or abs(extract(day from value)) > 366000
    then
        perform _procrastinate_refuse(argument, 'must lie between 0 and 1000 years');
    end if;
end;
$$;

comment on function _procrastinate_check_interval is
'Raise 22023 if an interval, or a part of it, is out of bounds.';

create function _procrastinate_refuse_job(job_id bigint)
returns void
language plpgsql
set search_path from current
as $$
begin
    if job_id is null then
        perform _procrastinate_refuse('job_id', 'must not be null');
    end if;
    raise exception 'there is no job %', job_id
        using errcode = 'PC005', hint = 'It was deleted, purged, or never committed.';
end;
$$;

comment on function _procrastinate_refuse_job is 'Raise PC005, or 22023 for a null.';

create function _procrastinate_refuse_worker(worker_id bigint)
returns void
language plpgsql
set search_path from current
as $$
begin
    if worker_id is null then
        perform _procrastinate_refuse('worker_id', 'must not be null');
    end if;
    raise exception 'worker % is not registered', worker_id
        using
            errcode = 'PC004',
            hint = 'It left or was given up: register again, and drop the jobs it still runs.';
end;
$$;

comment on function _procrastinate_refuse_worker is 'Raise PC004, or 22023 for a null.';
