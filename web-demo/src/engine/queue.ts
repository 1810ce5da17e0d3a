/**
 * A queue that runs one job at a time, because all jobs share the CPU. Foreground jobs run first. A background job should stop early when a
 * foreground job waits, and be added again.
 */

interface Job {
  isBackground: boolean;
  run(): Promise<void>;
}

export class Queue {
  private readonly waiting: Job[] = [];
  private running = false;

  /** True if a foreground job waits, so that a background job should stop. */
  get hasForegroundJob(): boolean {
    return this.waiting.some((job) => !job.isBackground);
  }

  add<T>(work: () => Promise<T>, isBackground = false): Promise<T> {
    return new Promise((resolve, reject) => {
      this.waiting.push({ isBackground, run: () => work().then(resolve, reject) });
      void this.start();
    });
  }

  private async start(): Promise<void> {
    if (this.running) return;
    this.running = true;
    for (;;) {
      const foreground = this.waiting.findIndex((job) => !job.isBackground);
      const [job] = this.waiting.splice(Math.max(foreground, 0), 1);
      if (!job) break;
      await job.run();
    }
    this.running = false;
  }
}

/** Returns to the event loop, so that the worker receives messages such as a cancellation. */
export function yieldToMessages(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
