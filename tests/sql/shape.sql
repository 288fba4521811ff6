-- Every object of ours is named for it and documented; every function is short and pins its path.
begin;
select plan(14);

create temporary view our_functions as
select
    fn.oid,
    fn.oid::regprocedure as signature,
    fn.proname as name,
    fn.prosrc as body,
    fn.proconfig as settings
from pg_proc as fn
where fn.pronamespace = quote_ident(current_schema())::regnamespace;

create temporary view our_relations as
select
    rel.oid,
    rel.relname as name,
    rel.relkind as kind
from pg_class as rel
where rel.relnamespace = quote_ident(current_schema())::regnamespace and rel.relkind <> 'I';

create temporary view our_types as
select
    type.oid,
    type.typname as name
from pg_type as type
where
    type.typnamespace = quote_ident(current_schema())::regnamespace
    and type.typelem = 0
    and not exists (
        select from pg_class as rel where rel.oid = type.typrelid and rel.relkind <> 'c'
    );

-- Names.

select is_empty(
    $$select our_functions.signature from our_functions
    where our_functions.name !~ '^_?procrastinate_'$$,
    'every function is named procrastinate_… or _procrastinate_…'
);

select is_empty(
    $$select our_relations.name from our_relations
    where our_relations.name !~ '^procrastinate_'$$,
    'every table, index and sequence is named procrastinate_…'
);

select is_empty(
    $$select our_types.name from our_types where our_types.name !~ '^procrastinate_'$$,
    'every type is named procrastinate_…'
);

select is_empty(
    $$
    select trg.tgname
    from pg_trigger as trg
    inner join our_relations on trg.tgrelid = our_relations.oid
    where not trg.tgisinternal and trg.tgname !~ '^procrastinate_'
    $$,
    'every trigger is named procrastinate_…'
);

-- Comments.

select is_empty(
    $$select our_functions.signature from our_functions
    where obj_description(our_functions.oid, 'pg_proc') is null$$,
    'every function has a comment'
);

select is_empty(
    $$
    select our_functions.signature
    from our_functions
    where
        our_functions.name ~ '^procrastinate_'
        and obj_description(our_functions.oid, 'pg_proc') !~ 'Example: .*procrastinate_'
    $$,
    'the comment of every public function has an example'
);

select is_empty(
    $$
    select our_relations.name
    from our_relations
    where
        our_relations.kind in ('r', 'p', 'v', 'm', 'S', 'c')
        and coalesce(
            obj_description(our_relations.oid, 'pg_class'),
            (
                select obj_description(type.oid, 'pg_type')
                from pg_type as type
                where type.typrelid = our_relations.oid
            )
        ) is null
        and not exists (
            select from pg_depend as identity
            where identity.objid = our_relations.oid and identity.deptype = 'i'
        )
    $$,
    'every table and sequence has a comment'
);

select is_empty(
    $$
    select our_relations.name, att.attname
    from pg_attribute as att
    inner join our_relations on att.attrelid = our_relations.oid
    where
        our_relations.kind in ('r', 'p', 'v', 'm')
        and att.attnum > 0
        and not att.attisdropped
        and col_description(att.attrelid, att.attnum) is null
    $$,
    'every column has a comment'
);

select is_empty(
    $$select our_types.name from our_types
    where obj_description(our_types.oid, 'pg_type') is null$$,
    'every type has a comment'
);

-- Functions.

select is_empty(
    $$
    select our_functions.signature
    from our_functions
    where cardinality(string_to_array(trim(e'\n' from our_functions.body), e'\n')) > 60
    $$,
    'no body is longer than 60 lines'
);

select is_empty(
    $$
    select our_functions.signature
    from our_functions
    where
        not coalesce(
            format('search_path=%I, pg_temp', current_schema()) = any(our_functions.settings), false
        )
    $$,
    'every function pins its search_path to our schema, with pg_temp last'
);

select is_empty(
    $$
    select our_functions.signature
    from our_functions
    where coalesce(array_to_string(our_functions.settings, ' ') ~ 'synchronous_commit', false)
    $$,
    'no function changes synchronous_commit: it would stay changed in the transaction of the caller'
);

-- A plan with a node that was switched off costs so much that each call would compile it anew.
select is_empty(
    $$
    select our_functions.signature
    from our_functions
    where
        array_to_string(our_functions.settings, ' ') ~ 'enable_'
        and not coalesce('jit=off' = any(our_functions.settings), false)
    $$,
    'a function that pins its plans also switches JIT off'
);

select is_empty(
    $$select our_functions.signature from our_functions
    where our_functions.body ~
        'set_config\(''(?!procrastinate\.|synchronous_commit'', ''on'', true)|set local'$$,
    'no function changes a setting of its caller, but for one of our own, and to make commits safer'
);

select * from finish();
rollback;
