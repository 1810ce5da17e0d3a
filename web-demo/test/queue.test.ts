import { expect, test } from 'vitest';
import { Queue, breathe } from '../src/engine/queue.ts';

test('jobs run one at a time, and those in the background when no other waits', async () => {
  const queue = new Queue();
  const log: string[] = [];
  let running = 0;
  const job = (name: string) => async () => {
    expect(++running).toBe(1);
    log.push(name);
    await breathe();
    running--;
    return name;
  };
  const done = [queue.add(job('first')), queue.add(job('behind'), true), queue.add(job('second')), queue.add(job('third'))];
  expect(await Promise.all(done)).toEqual(['first', 'behind', 'second', 'third']);
  expect(log).toEqual(['first', 'second', 'third', 'behind']);
});

test('a job in the background learns that it must give way', async () => {
  const queue = new Queue();
  const seen: boolean[] = [];
  const behind = queue.add(async () => {
    seen.push(queue.urgent);
    while (!queue.urgent) await breathe();
    seen.push(queue.urgent);
  }, true);
  await breathe();
  await queue.add(async () => {
    seen.push(queue.urgent);
  });
  await behind;
  expect(seen).toEqual([false, true, false]);
});

test('a job that fails fails for its owner alone', async () => {
  const queue = new Queue();
  const bad = queue.add(() => Promise.reject(new Error('no')));
  const good = queue.add(async () => 'yes');
  await expect(bad).rejects.toThrow('no');
  expect(await good).toBe('yes');
});
