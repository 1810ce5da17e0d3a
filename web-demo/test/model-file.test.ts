import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { UserError } from '../src/engine/errors.ts';
import { readMeta } from '../src/engine/meta.ts';
import { readOnnx } from '../src/engine/onnx-file.ts';
import { bytes, classifier, classifierJson, generator, generatorJson, number } from './onnx-builder.ts';

const read = (file: Uint8Array, name = 'cat.onnx') => readMeta(readOnnx(file, name), name);
const releasedModel = (name: string) => readFileSync(new URL(`../../models/pretrained/${name}`, import.meta.url));

test('released models can be read', () => {
  const file = readOnnx(releasedModel('tinydit.onnx'), 'tinydit.onnx');
  const meta = readMeta(file, 'tinydit.onnx');
  if (meta.kind !== 'generator') throw new Error(meta.kind);
  expect(meta.classes).toHaveLength(12);
  expect(meta.nullLabel).toBe(12);
  expect(meta.defaults).toEqual({ sampler: 'heun', steps: 20, guidance: 4, guidanceInterval: [0, 0.9] });
  expect(meta.inputs).toEqual(['x', 't', 'label']);
  // 5,556,800 parameters according to the card; constants of the graph count too.
  expect(file.parameters).toBeGreaterThanOrEqual(5_556_800);
  expect(file.parameters).toBeLessThan(5_556_800 * 1.01);

  const breeds = read(releasedModel('resnet18-breeds.onnx'));
  if (breeds.kind !== 'classifier') throw new Error(breeds.kind);
  expect(breeds.classes).toHaveLength(13);
  expect(breeds.preprocessing).toEqual({ resize: 146, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] });
});

test('fields that follow from the network are optional', () => {
  const json = generatorJson();
  for (const field of ['image_size', 'null_label', 'prediction', 'value_range', 'sampler']) delete json[field];
  expect(read(generator(json))).toMatchObject({ ...withoutJson(read(generator())), imageSize: 8 });
  json['config'] = { ...(json['config'] as object), layout: 'legacy' };
  expect(read(generator(json))).toMatchObject({ prediction: 'velocity', nullLabel: 1, defaults: { guidanceInterval: [0, 1] } });
});

function withoutJson(meta: ReturnType<typeof read>) {
  const { json: _, ...rest } = meta;
  return rest;
}

test('input names of the Python predecessor are accepted', () => {
  const inputs = [{ name: 'noise', dims: [null, 3, 8, 8] }, { name: 'timestep', dims: [null] }, { name: 'breed', type: 7, dims: [null] }];
  const outputs = [{ name: 'velocity', dims: [null, 3, 8, 8] }];
  expect(read(generator(generatorJson(), { inputs, outputs }))).toMatchObject({ inputs: ['noise', 'timestep', 'breed'], output: 'velocity' });
});

test('errors name the file, the invalid field and the expected value', () => {
  type Change = (json: ReturnType<typeof generatorJson>) => void;
  const set = (path: string, value: unknown): Change => (json) => {
    const keys = path.split('.');
    const last = keys.pop()!;
    (keys.reduce((at, key) => at[key] as typeof json, json))[last] = value;
  };
  const generators: [string, Change][] = [
    ['format_version', set('format_version', 9)],
    ['format_version', set('format_version', 0)],
    ['format_version', set('format_version', '1')],
    ['classes', set('classes', [])],
    ['classes', set('classes', ['one'])],
    ['classes', set('classes', ['a', 7])],
    ['null_label', set('null_label', 3)],
    ['image_size', set('image_size', 2 ** 40)],
    ['prediction', set('prediction', 'noise')],
    ['value_range', set('value_range', [1, -1])],
    ['sampler.steps', set('sampler.steps', 0)],
    ['sampler.sampler', set('sampler.sampler', 'ddim')],
    ['config.kind', set('config.kind', 'unet')],
  ];
  for (const [field, change] of generators) {
    const json = generatorJson();
    change(json);
    expect(() => read(generator(json)), field).toThrow(new RegExp(`^cat\\.onnx: tiny-cats\\.${field}: expected .*found `));
  }
  const classifiers: [string, Change][] = [
    ['image_size', set('image_size', 31)],
    ['preprocessing.resize', set('preprocessing.resize', 31)],
    ['preprocessing.mean', set('preprocessing.mean', [1, 2])],
    ['preprocessing.std', set('preprocessing.std', [1, 0, 1])],
    ['preprocessing.resize', set('preprocessing', undefined)],
  ];
  for (const [field, change] of classifiers) {
    const json = classifierJson();
    change(json);
    expect(() => read(classifier(json)), field).toThrow(new RegExp(`^cat\\.onnx: tiny-cats\\.${field}: expected .*found `));
  }
});

test('a newer format version is reported', () => {
  expect(() => read(generator({ ...generatorJson(), format_version: 2 }))).toThrow('a newer version of this page reads it');
});

test('class names that are invalid in file names give one-line errors', () => {
  for (const name of ['', '.', '..', '/etc/cat', '../cat', '..\\cat', 'C:cat', 'a\0b', 'a\nb', '\x1b[2J', '\x85']) {
    try {
      read(generator({ ...generatorJson(), classes: [name, 'b'] }));
      expect.unreachable(name);
    } catch (error) {
      expect((error as Error).message).toMatch(/^cat\.onnx: tiny-cats\.classes: /);
      expect((error as Error).message).not.toMatch(/\p{Cc}/u);
    }
  }
  for (const name of ['Ägyptische Mau', '...', 'St. Bernard (not a cat)', '短毛猫']) {
    expect(read(generator({ ...generatorJson(), classes: [name, 'b'] })).classes[0]).toBe(name);
  }
});

test('a mismatch of graph and metadata names the input', () => {
  const spec = (dims: (number | null)[], t = 1, label = 7) => ({
    inputs: [{ name: 'x', dims }, { name: 't', type: t, dims: [null] }, { name: 'label', type: label, dims: [null] }],
  });
  const json = generatorJson();
  expect(() => read(generator(json, spec([null, 3, 16, 16])))).toThrow('cat.onnx: graph.input.x: expected the shape [batch, 3, 8, 8], found [batch, 3, 16, 16]');
  expect(() => read(generator(json, spec([1, 3, 8, 8])))).toThrow('graph.input.x');
  expect(() => read(generator(json, spec([null, 3, 8, 8], 7)))).toThrow('graph.input.t: expected float32');
  expect(() => read(generator(json, spec([null, 3, 8, 8], 1, 6)))).toThrow('graph.input.label: expected int64');
  expect(() => read(generator(json, { inputs: [{ name: 'y', dims: [null] }] }))).toThrow('graph.input: expected an input called x, found "y"');
  expect(() => read(generator(json, { outputs: [{ name: 'o', dims: [null, 3, 4, 4] }] }))).toThrow('graph.output: expected the shape');
  const extra = [...spec([null, 3, 8, 8]).inputs, { name: 'mask', dims: [null] }];
  expect(() => read(generator(json, { inputs: extra }))).toThrow('found also "mask"');
});

test('errors for other files say what was expected', () => {
  const text = new TextEncoder().encode('This is a text about cats, not a model.');
  expect(() => read(text)).toThrow(/^cat\.onnx: (format|graph): expected an ONNX model/);
  expect(() => read(new Uint8Array(0))).toThrow('cat.onnx: size: expected an ONNX model, found an empty file');
  expect(() => read(Uint8Array.from([0x50, 0x4b, 3, 4]))).toThrow('a zip file such as .pt');
  expect(() => read(Uint8Array.from([8, 0, 0, 0, 0, 0, 0, 0, 0x7b, 0x22]))).toThrow('safetensors');
  expect(() => read(generator(generatorJson(), { metadata: {} }))).toThrow('metadata_props.tiny-cats');
  expect(() => read(generator(generatorJson(), { metadata: { 'tiny-cats': '{' } }))).toThrow('cat.onnx: tiny-cats: expected a JSON object');
  expect(() => read(generator(generatorJson(), { metadata: { 'tiny-cats': '['.repeat(10_000) } }))).toThrow('expected a JSON object');
  const huge = { 'tiny-cats': 'x'.repeat((1 << 20) + 1) };
  expect(() => read(generator(generatorJson(), { metadata: huge }))).toThrow('metadata_props: expected at most 1048576 bytes');
});

test('truncated and changed files are models or give a UserError', () => {
  for (const file of [generator(), classifier()]) {
    for (let end = 0; end < file.length; end++) readOrReject(file.subarray(0, end));
    for (let at = 0; at < file.length; at++) {
      for (let bit = 0; bit < 8; bit++) {
        const changed = file.slice();
        changed[at]! ^= 1 << bit;
        readOrReject(changed);
      }
    }
  }
});

test('random bytes are rejected', () => {
  let state = 1;
  const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0);
  for (let round = 0; round < 3000; round++) readOrReject(Uint8Array.from({ length: next() % 60 }, () => next() >>> 24));
});

function readOrReject(file: Uint8Array): void {
  try {
    read(file);
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    expect(error.message).toMatch(/^cat\.onnx: /);
    expect(error.message).not.toMatch(/\p{Cc}/u);
  }
}

test('many empty fields, huge lengths and endless varints are rejected quickly', () => {
  const many = new Uint8Array(6_000_000);
  for (let i = 0; i < many.length; i += 2) many[i] = 0x0a;
  const start = performance.now();
  const graph = Uint8Array.from([0x3a, ...lengthOf(many.length)]);
  expect(() => read(Uint8Array.of(...graph, ...many.subarray(0, 0)))).toThrow(UserError);
  const file = new Uint8Array(graph.length + many.length);
  file.set(graph);
  file.set(many, graph.length);
  expect(() => read(file)).toThrow('more than 2000000 fields');
  expect(() => read(Uint8Array.from([0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 1]))).toThrow('ends within a field');
  expect(() => read(Uint8Array.from(Array.from({ length: 30 }, () => 0xff)))).toThrow('more than 64 bits');
  expect(() => read(Uint8Array.from([...bytes(7, []), ...bytes(7, []), ...number(1, 8)]))).toThrow('one graph, found 2');
  expect(performance.now() - start).toBeLessThan(5000);
});

const lengthOf = (n: number): number[] => (n < 128 ? [n] : [(n & 127) | 128, ...lengthOf(n >>> 7)]);
