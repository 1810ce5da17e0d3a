/**
 * One job at a time, because there is one processor to share. A job in the background gives way: it ends its work early when another
 * waits, and takes it up again when none does.
 */

interface Job {
  background: boolean;
  run(): Promise<void>;
}

export class Queue {
  private readonly waiting: Job[] = [];
  private running = false;

  /** Whether a job in the background must give way. */
  get urgent(): boolean {
    return this.waiting.some((job) => !job.background);
  }

  add<T>(work: () => Promise<T>, background = false): Promise<T> {
    return new Promise((resolve, reject) => {
      this.waiting.push({ background, run: () => work().then(resolve, reject) });
      void this.start();
    });
  }

  private async start(): Promise<void> {
    if (this.running) return;
    this.running = true;
    for (;;) {
      const urgent = this.waiting.findIndex((job) => !job.background);
      const [job] = this.waiting.splice(Math.max(urgent, 0), 1);
      if (!job) break;
      await job.run();
    }
    this.running = false;
  }
}

/** Lets messages in, such as one that cancels: the runtime alone would leave no room for them. */
export function breathe(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
