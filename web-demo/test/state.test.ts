import { expect, test } from 'vitest';
import { fileName, findLabel, imageSpecs, singleImage, variations } from '../src/generation.ts';
import { type Generation, format, parse, parseUint64 } from '../src/state.ts';
import { cells, markdown, quantile, row } from '../src/ui/statistics.ts';

const CLASSES = ['Abyssinian', 'British_Shorthair', 'Siamese'];
const HASH = '8c0fa5758080a834ca71b6d60b89726dd008270a44d39760ce7fd808b477086a';
const generation = (change: Partial<Generation> = {}): Generation => ({ breed: 'Siamese', seed: 7n, index: 0n, count: 4, steps: 20, guidance: 2, sampler: 'heun', neighborPath: [], neighborhood: false, ...change });

test('URLs can be written and read', () => {
  const all: Generation[] = [
    generation(),
    generation({ seed: 2n ** 64n - 1n, index: 2n ** 63n, guidance: -0.5, sampler: 'midpoint', steps: 10_000, count: 64 }),
    generation({ breed: 'Ägyptische Mau & Söhne #1', guidance: 1e-3 }),
    generation({ neighborPath: [2, 5], neighborhood: true }),
    generation({ neighborPath: [], neighborhood: true }),
    generation({ neighborPath: [99] }),
  ];
  for (const each of all) {
    const { view, generation: parsed, model } = parse(format('generate', each, HASH));
    expect(view).toBe('generate');
    expect({ neighborPath: [], neighborhood: false, ...parsed }).toEqual(each);
    expect(HASH.startsWith(model!)).toBe(true);
  }
  expect(parse(format('about', null, null))).toEqual({ view: 'about', generation: null, model: null });
});

test('invalid values in a URL are ignored', () => {
  for (const hash of ['', '#', '#nowhere', '#generate?', '#generate?seed=-1&steps=0&count=0&guidance=x&sampler=ddim&near=..', '#generate?seed=18446744073709551616&near=100&index=1e3&steps=', '#generate?model=../../x&near=1.*.2']) {
    expect(parse(hash)).toEqual({ view: 'generate', generation: null, model: null });
  }
  expect(parse('#generate?steps=7.9&count=2.5').generation).toEqual({ steps: 7, count: 2 });
  expect(parseUint64('18446744073709551615')).toBe(2n ** 64n - 1n);
  expect(parseUint64(' 12 ')).toBe(12n);
});

test('images have the indices and classes of the command line', () => {
  expect(imageSpecs(generation({ breed: 'all', count: 5, index: 2n }), CLASSES)!.map(({ label, index }) => [label, index])).toEqual([[2, 2n], [0, 3n], [1, 4n], [2, 5n], [0, 6n]]);
  expect(imageSpecs(generation({ count: 2, index: 2n ** 64n - 1n }), CLASSES)!.map(({ index }) => index)).toEqual([2n ** 64n - 1n, 0n]);
  expect(imageSpecs(generation({ breed: 'Dog' }), CLASSES)).toBeNull();
  expect(findLabel('british shorthair', CLASSES)).toBe(1);
  expect(findLabel('British-Shorthair', CLASSES)).toBe(1);
  const [first] = imageSpecs(generation(), CLASSES)!;
  expect(fileName(generation(), first!, CLASSES)).toBe('Siamese_seed7_0000.png');
});

test('a single image is the same as in a group or among neighbors', () => {
  for (const group of [generation({ breed: 'all', index: 4n }), generation({ neighborPath: [3], neighborhood: true }), generation({ neighborPath: [3, 1] })]) {
    for (const spec of imageSpecs(group, CLASSES)!) {
      const single = singleImage(group, spec, CLASSES);
      const opened = { ...generation(), ...parse(format('generate', single, HASH)).generation };
      const [again, ...others] = imageSpecs(opened, CLASSES)!;
      expect(others).toEqual([]);
      expect({ ...again!, neighborPath: trimmed(again!.neighborPath) }).toEqual({ ...spec, neighborPath: trimmed(spec.neighborPath) });
      const neighbors = imageSpecs(variations(group, spec, CLASSES, 9), CLASSES)!;
      expect(neighbors).toHaveLength(9);
      expect(trimmed(neighbors[0]!.neighborPath)).toEqual(trimmed(spec.neighborPath));
      expect(neighbors.every(({ index, label }) => index === spec.index && label === spec.label)).toBe(true);
    }
  }
  const [, second] = imageSpecs(generation({ neighborhood: true }), CLASSES)!;
  expect(fileName(generation({ neighborhood: true }), second!, CLASSES)).toBe('Siamese_seed7_0000_near1.png');
});

const trimmed = (path: number[]) => path.slice(0, path.findLastIndex((n) => n !== 0) + 1);

test('percentiles use the nearest rank', () => {
  const values = Array.from({ length: 100 }, (_, i) => 100 - i);
  expect([0.5, 0.95, 0.99, 1].map((share) => quantile(values, share))).toEqual([50, 95, 99, 100]);
  expect(quantile([3], 0.99)).toBe(3);
  expect(quantile([5, 1, 3], 0.5)).toBe(3);
});

test('the report escapes special characters in tables', () => {
  const result = row({ what: 'network evaluation', backend: 'wasm', threads: 2, batch: 4, steps: null }, [10, 30, 20]);
  expect(cells(result)).toEqual(['network evaluation', 'wasm', '2', '4', '3', '20.0', '30.0', '30.0', '5.0']);
  const text = markdown({ model: { name: 'm', sha256: HASH, parameters: 5 }, device: { Browser: 'a | b\nc' }, rows: [result] });
  expect(text).toContain('| Browser | a \\| b c |');
  expect(text).toContain('| network evaluation | wasm | 2 | 4 | 3 | 20.0 | 30.0 | 30.0 | 5.0 |');
});
