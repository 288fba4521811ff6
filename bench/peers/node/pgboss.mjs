// pg-boss with four handlers that take batches of 5,000: its handlers are called with lists of jobs.
import PgBoss from "pg-boss";
import { Contract } from "./contract.mjs";

const HANDLERS = 4;
const BATCH = 5000;
const POLL = 0.5; // seconds, the shortest that it allows

const contract = new Contract();
const boss = new PgBoss({ connectionString: contract.dsn, ...(contract.isClient ? { max: 1 } : {}) });
boss.on("error", (error) => console.error(error));

await boss.start();
if (contract.kind === "install") {
  await boss.createQueue("noop");
  await boss.stop({ graceful: false });
  contract.end({ done: true });
} else if (contract.isClient) {
  await contract.serveClient(
    (n) => boss.send("noop", { n }),
    (numbers) => boss.insert(numbers.map((n) => ({ name: "noop", data: { n } }))),
  );
} else {
  await contract.ready();
  for (let i = 0; i < HANDLERS; i += 1) {
    await boss.work("noop", { batchSize: BATCH, pollingIntervalSeconds: POLL }, async (jobs) => {
      for (const job of jobs) contract.ran(job.data.n);
    });
  }
  await contract.stopped();
  await boss.stop({ graceful: true, wait: true, timeout: 30000 });
  contract.report();
}
