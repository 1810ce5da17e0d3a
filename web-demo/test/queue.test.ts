import { expect, test } from 'vitest';
import { Queue, yieldToMessages } from '../src/engine/queue.ts';

test('jobs run one at a time, and background jobs run last', async () => {
  const queue = new Queue();
  const log: string[] = [];
  let running = 0;
  const job = (name: string) => async () => {
    expect(++running).toBe(1);
    log.push(name);
    await yieldToMessages();
    running--;
    return name;
  };
  const results = [queue.add(job('first')), queue.add(job('background'), true), queue.add(job('second')), queue.add(job('third'))];
  expect(await Promise.all(results)).toEqual(['first', 'background', 'second', 'third']);
  expect(log).toEqual(['first', 'second', 'third', 'background']);
});

test('a background job can see that a foreground job waits', async () => {
  const queue = new Queue();
  const states: boolean[] = [];
  const background = queue.add(async () => {
    states.push(queue.hasForegroundJob);
    while (!queue.hasForegroundJob) await yieldToMessages();
    states.push(queue.hasForegroundJob);
  }, true);
  await yieldToMessages();
  await queue.add(async () => {
    states.push(queue.hasForegroundJob);
  });
  await background;
  expect(states).toEqual([false, true, false]);
});

test('a failed job does not affect others', async () => {
  const queue = new Queue();
  const bad = queue.add(() => Promise.reject(new Error('no')));
  const good = queue.add(async () => 'yes');
  await expect(bad).rejects.toThrow('no');
  expect(await good).toBe('yes');
});
