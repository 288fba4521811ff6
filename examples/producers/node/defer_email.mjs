// Defer a job from Node and print its id.
//
//   npm install
//   node defer_email.mjs ann@example.org 'Hello Ann'
//
// `pg` finds the database by PGHOST, PGDATABASE and so on. To defer in a transaction of yours, run
// the same query on its client between BEGIN and COMMIT: the job exists when that commits.

import pg from "pg";

const [to, subject] = process.argv.slice(2);
const client = new pg.Client();
await client.connect();
try {
  const { rows } = await client.query(
    `select procrastinate_defer_job(
       'send_email', $1::jsonb, queue_name => 'mail', lock => $2
     ) as job_id`,
    [JSON.stringify({ to, subject }), to],
  );
  console.log(rows[0].job_id);
} finally {
  await client.end();
}
