import { expect, test } from 'vitest';
import { alone, draws, fileName, labelOf, likeIt } from '../src/drawing.ts';
import { type Drawing, format, natural, parse } from '../src/state.ts';
import { cells, markdown, quantile, row } from '../src/ui/statistics.ts';

const CLASSES = ['Abyssinian', 'British_Shorthair', 'Siamese'];
const HASH = '8c0fa5758080a834ca71b6d60b89726dd008270a44d39760ce7fd808b477086a';
const drawing = (change: Partial<Drawing> = {}): Drawing => ({ breed: 'Siamese', seed: 7n, index: 0n, count: 4, steps: 20, guidance: 2, sampler: 'heun', near: [], around: false, ...change });

test('what is written into an address is read from it', () => {
  const all: Drawing[] = [
    drawing(),
    drawing({ seed: 2n ** 64n - 1n, index: 2n ** 63n, guidance: -0.5, sampler: 'midpoint', steps: 10_000, count: 64 }),
    drawing({ breed: 'Ägyptische Mau & Söhne #1', guidance: 1e-3 }),
    drawing({ near: [2, 5], around: true }),
    drawing({ near: [], around: true }),
    drawing({ near: [99] }),
  ];
  for (const each of all) {
    const { view, drawing: found, model } = parse(format('generate', each, HASH));
    expect(view).toBe('generate');
    expect({ near: [], around: false, ...found }).toEqual(each);
    expect(HASH.startsWith(model!)).toBe(true);
  }
  expect(parse(format('about', null, null))).toEqual({ view: 'about', drawing: null, model: null });
});

test('what makes no sense in an address is passed over', () => {
  for (const hash of ['', '#', '#nowhere', '#generate?', '#generate?seed=-1&steps=0&count=0&guidance=x&sampler=ddim&near=..', '#generate?seed=18446744073709551616&near=100&index=1e3&steps=', '#generate?model=../../x&near=1.*.2']) {
    expect(parse(hash)).toEqual({ view: 'generate', drawing: null, model: null });
  }
  expect(parse('#generate?steps=7.9&count=2.5').drawing).toEqual({ steps: 7, count: 2 });
  expect(natural('18446744073709551615')).toBe(2n ** 64n - 1n);
  expect(natural(' 12 ')).toBe(12n);
});

test('pictures have the numbers and classes of the command line', () => {
  expect(draws(drawing({ breed: 'all', count: 5, index: 2n }), CLASSES)!.map(({ label, index }) => [label, index])).toEqual([[2, 2n], [0, 3n], [1, 4n], [2, 5n], [0, 6n]]);
  expect(draws(drawing({ count: 2, index: 2n ** 64n - 1n }), CLASSES)!.map(({ index }) => index)).toEqual([2n ** 64n - 1n, 0n]);
  expect(draws(drawing({ breed: 'Dog' }), CLASSES)).toBeNull();
  expect(labelOf('british shorthair', CLASSES)).toBe(1);
  expect(labelOf('British-Shorthair', CLASSES)).toBe(1);
  const [first] = draws(drawing(), CLASSES)!;
  expect(fileName(drawing(), first!, CLASSES)).toBe('Siamese_seed7_0000.png');
});

test('a picture alone is the same draw as among others, also among neighbours', () => {
  for (const whole of [drawing({ breed: 'all', index: 4n }), drawing({ near: [3], around: true }), drawing({ near: [3, 1] })]) {
    for (const draw of draws(whole, CLASSES)!) {
      const single = alone(whole, draw, CLASSES);
      const opened = { ...drawing(), ...parse(format('generate', single, HASH)).drawing };
      const [again, ...others] = draws(opened, CLASSES)!;
      expect(others).toEqual([]);
      expect({ ...again!, near: trimmed(again!.near) }).toEqual({ ...draw, near: trimmed(draw.near) });
      const around = draws(likeIt(whole, draw, CLASSES, 9), CLASSES)!;
      expect(around).toHaveLength(9);
      expect(trimmed(around[0]!.near)).toEqual(trimmed(draw.near));
      expect(around.every(({ index, label }) => index === draw.index && label === draw.label)).toBe(true);
    }
  }
  const [, second] = draws(drawing({ around: true }), CLASSES)!;
  expect(fileName(drawing({ around: true }), second!, CLASSES)).toBe('Siamese_seed7_0000_near1.png');
});

const trimmed = (near: number[]) => near.slice(0, near.findLastIndex((n) => n !== 0) + 1);

test('percentiles are nearest ranks', () => {
  const values = Array.from({ length: 100 }, (_, i) => 100 - i);
  expect([0.5, 0.95, 0.99, 1].map((share) => quantile(values, share))).toEqual([50, 95, 99, 100]);
  expect(quantile([3], 0.99)).toBe(3);
  expect(quantile([5, 1, 3], 0.5)).toBe(3);
});

test('a report is a table that a foreign name cannot break', () => {
  const measured = row({ what: 'network evaluation', backend: 'wasm', threads: 2, batch: 4, steps: null }, [10, 30, 20]);
  expect(cells(measured)).toEqual(['network evaluation', 'wasm', '2', '4', '3', '20.0', '30.0', '30.0', '5.0']);
  const text = markdown({ model: { name: 'm', sha256: HASH, parameters: 5 }, device: { Browser: 'a | b\nc' }, rows: [measured] });
  expect(text).toContain('| Browser | a \\| b c |');
  expect(text).toContain('| network evaluation | wasm | 2 | 4 | 3 | 20.0 | 30.0 | 30.0 | 5.0 |');
});
