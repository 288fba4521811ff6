#!/bin/sh
# Defer a job from a shell script and print its id.
#
#   sh defer_email.sh ann@example.org 'Hello Ann'
#
# The arguments go to psql as variables, which it quotes (:'to'); never paste them into the SQL. psql
# fills variables in only where it reads a script, here from standard input, and not in `-c`. The
# database is that of PGHOST, PGDATABASE and so on.
set -eu

psql -X -q -At -v ON_ERROR_STOP=1 -v to="$1" -v subject="$2" << 'SQL'
select procrastinate_defer_job(
    'send_email',
    jsonb_build_object('to', :'to', 'subject', :'subject'),
    queue_name => 'mail',
    lock => :'to'
);
SQL
