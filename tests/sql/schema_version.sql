-- Which version of the schema this is.
begin;
select plan(3);

select cmp_ok(procrastinate_schema_version(), '>=', 1, 'the schema has a version');

select function_returns(
    'procrastinate_schema_version', 'integer', 'it is a number that can be compared'
);

select volatility_is(
    'procrastinate_schema_version', '{}'::name[], 'immutable', 'it is the same throughout'
);

select * from finish();
rollback;
