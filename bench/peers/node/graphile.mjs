// Graphile Worker as its page on performance recommends: a local queue, batched completion.
import { Logger, makeWorkerUtils, run, runMigrations } from "graphile-worker";
import pg from "pg";
import { Contract } from "./contract.mjs";

const contract = new Contract();
const logger = new Logger(() => (level, message) => {
  if (level === "error") console.error(message);
});

function preset({ size = 500, concurrency = 24, pool = 26, delay = 0 }) {
  return {
    worker: {
      connectionString: contract.dsn,
      concurrentJobs: concurrency,
      maxPoolSize: pool,
      localQueue: { size },
      completeJobBatchDelay: delay,
      failJobBatchDelay: delay,
    },
  };
}

async function work() {
  const taskList = { noop: async ({ n }) => contract.ran(n) };
  const count = contract.options.workers ?? 1;
  await contract.ready();
  const runners = [];
  for (let i = 0; i < count; i += 1) {
    runners.push(await run({ preset: preset(contract.options), taskList, logger, noHandleSignals: true }));
  }
  await contract.stopped();
  await Promise.all(runners.map((runner) => runner.stop()));
  contract.report();
}

async function defer() {
  // One connection.
  const pgPool = new pg.Pool({ connectionString: contract.dsn, max: 1 });
  const utils = await makeWorkerUtils({ pgPool, logger });
  await contract.serveClient(
    (n) => utils.addJob("noop", { n }),
    (numbers) => utils.addJobs(numbers.map((n) => ({ identifier: "noop", payload: { n } }))),
  );
}

if (contract.kind === "install") {
  await runMigrations({ connectionString: contract.dsn, logger });
  contract.end({ done: true });
} else if (contract.isClient) {
  await defer();
} else {
  await work();
}
