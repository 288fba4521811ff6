// The contract of bench/programs/contract.py, for Node.
import { createInterface } from "node:readline";

const TICK = 50; // milliseconds between reports of progress

export function monotonic() {
  return Number(process.hrtime.bigint()) / 1e9;
}

export class Contract {
  constructor() {
    const [dsn, jobs, kind, options] = process.argv.slice(2);
    this.dsn = dsn;
    this.jobs = Number(jobs);
    this.kind = kind;
    this.options = JSON.parse(options ?? "{}");
    this.isClient = ["bulk", "single", "send"].includes(kind);
    this.marks = Buffer.alloc(this.jobs);
    this.count = 0;
    this.first = 0;
    this.last = 0;
    this.ran = kind === "latency" ? (n) => this.tellStart(n) : (n) => this.tickOff(n);
    this.words = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  }

  say(message) {
    process.stdout.write(`${JSON.stringify(message)}\n`);
  }

  async hear() {
    const { done, value } = await this.words.next();
    return done ? "stop" : value;
  }

  async ready() {
    this.say({ ready: true });
    if ((await this.hear()) !== "go") process.exit(0);
  }

  tickOff(n) {
    if (this.count === 0) this.first = monotonic();
    this.marks[n] += 1;
    this.count += 1;
    this.last = monotonic();
  }

  tellStart(n) {
    this.say({ start: n, at: monotonic() });
    this.count += 1;
  }

  // Report progress until told to stop.
  async stopped() {
    let told = 0;
    const ticker = setInterval(() => {
      if (told === this.count) return;
      told = this.count;
      this.say({ progress: told });
    }, TICK);
    while ((await this.hear()) !== "stop");
    clearInterval(ticker);
  }

  // Say what was counted, once nothing runs any more, and end.
  report() {
    const { count, first, last } = this;
    const marks = this.marks.toString("hex");
    this.end({ done: true, runs: count, first, last, disorder: 0, marks });
  }

  end(message) {
    process.stdout.write(`${JSON.stringify(message)}\n`, () => process.exit(0));
  }

  async serveClient(sendOne, sendMany) {
    await this.ready();
    const started = monotonic();
    if (this.kind === "bulk") {
      const batch = this.options.batch;
      for (let start = 0; start < this.jobs; start += batch) {
        const size = Math.min(batch, this.jobs - start);
        await sendMany(Array.from({ length: size }, (_, i) => start + i));
      }
    } else if (this.kind === "single") {
      for (let n = 0; n < this.jobs; n += 1) await sendOne(n);
    } else {
      for (let n = 0; n < this.jobs && (await this.hear()) === "next"; n += 1) {
        const at = monotonic();
        await sendOne(n);
        this.say({ sent: n, at });
      }
    }
    this.end({ done: true, seconds: monotonic() - started });
  }
}
