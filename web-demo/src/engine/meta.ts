/**
 * The metadata of a model: the JSON under the key `tiny-cats` in an ONNX file's metadata, which `export/src/meta` writes. The page gets
 * class names, sizes, steps, guidance and preprocessing from it, so that it supports new models without changes.
 */
import { fileError } from './errors.ts';
import type { OnnxFile, Port } from './onnx-file.ts';

export const META_KEY = 'tiny-cats';
/** The newest version of the format that this page reads. */
export const FORMAT_VERSION = 1;

const MAX_CLASSES = 4096;
const MAX_GENERATED = 1024;
const MIN_CLASSIFIED = 32;
const MAX_CLASSIFIED = 1024;

export const SAMPLERS = ['euler', 'heun', 'midpoint'] as const;
export type SamplerName = (typeof SAMPLERS)[number];
export type Prediction = 'x' | 'velocity';

/** The recommended settings for sampling from the model. */
export interface SamplerDefaults {
  sampler: SamplerName;
  steps: number;
  guidance: number;
  guidanceInterval: [number, number];
}

interface BaseMeta {
  imageSize: number;
  classes: string[];
  /** Names of the graph's inputs, in the order of {@link GENERATOR_INPUTS} or of {@link CLASSIFIER_INPUTS}. */
  inputs: string[];
  output: string;
  /** The complete JSON, for display. */
  json: Record<string, unknown>;
}

export interface GeneratorMeta extends BaseMeta {
  kind: 'generator';
  nullLabel: number;
  /** The values of black and white. */
  valueRange: [number, number];
  prediction: Prediction;
  defaults: SamplerDefaults;
}

/** The preprocessing of a photograph: resize the short side, crop the center, and map values from [0, 1] to (value − mean) / std by channel. */
export interface Preprocessing {
  resize: number;
  mean: [number, number, number];
  std: [number, number, number];
}

export interface ClassifierMeta extends BaseMeta {
  kind: 'classifier';
  preprocessing: Preprocessing;
}

export type ModelMeta = GeneratorMeta | ClassifierMeta;

/** The noisy image, its time and its label; and their names in files of the Python predecessor. */
export const GENERATOR_INPUTS = ['x', 't', 'label'];
const PREDECESSOR_INPUTS = ['noise', 'timestep', 'breed'];
export const CLASSIFIER_INPUTS = ['input'];

const FLOAT = 1;
const INT64 = 7;

type Json = Record<string, unknown>;

/** Reads and checks the metadata of the file called `name`, and checks that its graph matches. */
export function readMeta(file: OnnxFile, name: string): ModelMeta {
  const text = file.metadata.get(META_KEY);
  if (text === undefined) {
    throw fileError(name, `metadata_props.${META_KEY}`, 'expected metadata of tiny-cats, found none; only files that tiny-cats exports can be used');
  }
  const error = (field: string, message: string) => fileError(name, field ? `${META_KEY}.${field}` : META_KEY, message);
  let json: Json;
  try {
    json = asObject(JSON.parse(text));
  } catch {
    throw error('', 'expected a JSON object');
  }
  const reader = new MetaReader(json, error);
  const version = reader.integer('format_version', 0, Number.MAX_SAFE_INTEGER);
  if (version < 1 || version > FORMAT_VERSION) {
    const advice = version > FORMAT_VERSION ? '; a newer version of this page reads it' : '';
    throw error('format_version', `expected 1 to ${FORMAT_VERSION}, found ${version}${advice}`);
  }
  const classes = reader.classes();
  const kind = reader.text('config.kind');
  if (kind === 'tiny-dit') return generator(reader, classes, file, name);
  if (kind === 'resnet') return classifier(reader, classes, file, name);
  throw error('config.kind', `expected tiny-dit or resnet, found ${format(kind)}`);
}

function generator(reader: MetaReader, classes: string[], file: OnnxFile, name: string): GeneratorMeta {
  const modern = reader.optional('config.layout', 'modern') === 'modern';
  const imageSize = reader.integer(reader.has('image_size') ? 'image_size' : 'config.image_size', 1, MAX_GENERATED);
  const nullLabel = reader.has('null_label') ? reader.integer('null_label', 0, classes.length) : classes.length - (modern ? 0 : 1);
  const prediction = reader.has('prediction') ? reader.choice('prediction', ['x', 'velocity']) : modern ? 'x' : 'velocity';
  const valueRange = reader.has('value_range') ? reader.pair('value_range') : ([-1, 1] satisfies [number, number]);
  if (!(valueRange[0] < valueRange[1])) throw reader.error('value_range', `expected black less than white, found ${format(valueRange)}`);
  const defaults: SamplerDefaults = {
    sampler: reader.has('sampler.sampler') ? reader.choice('sampler.sampler', SAMPLERS) : 'heun',
    steps: reader.has('sampler.steps') ? reader.integer('sampler.steps', 1, 10_000) : 20,
    guidance: reader.has('sampler.guidance') ? reader.number('sampler.guidance') : 2,
    guidanceInterval: reader.has('sampler.guidance_interval') ? reader.pair('sampler.guidance_interval') : [0.1, 0.9],
  };
  // Networks that predict velocities use guidance at all times, as in the predecessor.
  if (prediction === 'velocity') defaults.guidanceInterval = [0, 1];
  const legacy = file.inputs.some((port) => port.name === PREDECESSOR_INPUTS[0]);
  const inputs = legacy ? PREDECESSOR_INPUTS : GENERATOR_INPUTS;
  expectInput(file, name, inputs[0]!, FLOAT, [null, 3, imageSize, imageSize]);
  expectInput(file, name, inputs[1]!, FLOAT, [null]);
  expectInput(file, name, inputs[2]!, INT64, [null]);
  expectOnly(file, name, inputs);
  const output = expectOutput(file, name, [null, 3, imageSize, imageSize]);
  return { kind: 'generator', imageSize, classes, inputs, output, json: reader.json, nullLabel, prediction, valueRange, defaults };
}

function classifier(reader: MetaReader, classes: string[], file: OnnxFile, name: string): ClassifierMeta {
  const imageSize = reader.integer('image_size', MIN_CLASSIFIED, MAX_CLASSIFIED);
  const resize = reader.integer('preprocessing.resize', imageSize, 2 * MAX_CLASSIFIED);
  const mean = reader.triple('preprocessing.mean');
  const std = reader.triple('preprocessing.std');
  if (!std.every((value) => value > 0)) throw reader.error('preprocessing.std', `expected positive deviations, found ${format(std)}`);
  expectInput(file, name, CLASSIFIER_INPUTS[0]!, FLOAT, [null, 3, imageSize, imageSize]);
  expectOnly(file, name, CLASSIFIER_INPUTS);
  const output = expectOutput(file, name, [null, classes.length]);
  const preprocessing = { resize, mean, std };
  return { kind: 'classifier', imageSize, classes, inputs: CLASSIFIER_INPUTS, output, json: reader.json, preprocessing };
}

function expectInput(file: OnnxFile, name: string, input: string, type: number, dims: (number | null)[]): void {
  const port = file.inputs.find((port) => port.name === input);
  if (!port) {
    const found = file.inputs.map((port) => format(port.name)).join(', ');
    throw fileError(name, 'graph.input', `expected an input called ${input}, found ${found}`);
  }
  if (port.type !== type) {
    throw fileError(name, `graph.input.${input}`, `expected ${type === FLOAT ? 'float32' : 'int64'}, found ONNX type ${port.type}`);
  }
  expectShape(name, `graph.input.${input}`, port, dims);
}

function expectOnly(file: OnnxFile, name: string, inputs: string[]): void {
  const other = file.inputs.find((port) => !inputs.includes(port.name));
  if (other) throw fileError(name, 'graph.input', `expected ${inputs.join(', ')} only, found also ${format(other.name)}`);
}

function expectOutput(file: OnnxFile, name: string, dims: (number | null)[]): string {
  const port = file.outputs[0]!;
  expectShape(name, 'graph.output', port, dims);
  return port.name;
}

/** Dynamic axes of the file match any size; the first axis is the batch and must be dynamic. */
function expectShape(name: string, field: string, port: Port, dims: (number | null)[]): void {
  const matches = port.dims.length === dims.length && dims.every((size, i) => (size === null ? port.dims[i] === null : (port.dims[i] ?? size) === size));
  if (matches) return;
  const print = (sizes: (number | null)[]) => `[${sizes.map((size) => size ?? 'batch').join(', ')}]`;
  throw fileError(name, field, `expected the shape ${print(dims)}, found ${print(port.dims)}`);
}

/** Reads and checks fields of the JSON by dotted path. */
class MetaReader {
  constructor(
    readonly json: Json,
    readonly error: (field: string, message: string) => Error,
  ) {}

  private get(path: string): unknown {
    let value: unknown = this.json;
    for (const key of path.split('.')) {
      if (typeof value !== 'object' || value === null || !Object.hasOwn(value, key)) return undefined;
      value = (value as Json)[key];
    }
    return value ?? undefined;
  }

  has(path: string): boolean {
    return this.get(path) !== undefined;
  }

  optional(path: string, fallback: string): unknown {
    return this.get(path) ?? fallback;
  }

  private expect<T>(path: string, expected: string, isValid: (value: unknown) => value is T): T {
    const value = this.get(path);
    if (isValid(value)) return value;
    throw this.error(path, `expected ${expected}, found ${format(value)}`);
  }

  text(path: string): string {
    return this.expect(path, 'a string', (value): value is string => typeof value === 'string');
  }

  number(path: string): number {
    return this.expect(path, 'a finite number', isFiniteNumber);
  }

  integer(path: string, min: number, max: number): number {
    const isValid = (value: unknown): value is number => Number.isInteger(value) && (value as number) >= min && (value as number) <= max;
    return this.expect(path, min === 0 && max > 1e9 ? 'an integer' : `${min} to ${max}`, isValid);
  }

  choice<T extends string>(path: string, choices: readonly T[]): T {
    return this.expect(path, choices.join(' or '), (value): value is T => choices.includes(value as T));
  }

  pair(path: string): [number, number] {
    const isValid = (value: unknown): value is [number, number] => isNumberArray(value, 2);
    return this.expect(path, 'two numbers', isValid);
  }

  triple(path: string): [number, number, number] {
    const isValid = (value: unknown): value is [number, number, number] => isNumberArray(value, 3);
    return this.expect(path, 'three numbers', isValid);
  }

  classes(): string[] {
    const list = this.expect('classes', `1 to ${MAX_CLASSES} names`, (value): value is unknown[] => {
      return Array.isArray(value) && value.length >= 1 && value.length <= MAX_CLASSES;
    });
    const invalid = list.find((name) => !isClassName(name));
    if (invalid !== undefined) throw this.error('classes', `expected names that are valid in file names, found ${format(invalid)}`);
    const network = this.get('config.classes');
    if (network !== undefined && network !== list.length) {
      throw this.error('classes', `expected the network's ${format(network)} classes, found ${list.length}`);
    }
    return list as string[];
  }
}

const isFiniteNumber = (value: unknown): value is number => typeof value === 'number' && Number.isFinite(value);
const isNumberArray = (value: unknown, n: number) => Array.isArray(value) && value.length === n && value.every(isFiniteNumber);

/** True if a class name can be part of a file name: not empty, not a folder, and without path separators and control characters. */
export function isClassName(name: unknown): name is string {
  return typeof name === 'string' && !['', '.', '..'].includes(name) && !/[/\\:\p{Cc}]/u.test(name);
}

function asObject(value: unknown): Json {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Json;
  throw new TypeError('expected an object');
}

/** Formats a value as one short line of printable characters. */
function format(value: unknown): string {
  if (value === undefined) return 'nothing';
  const text = (JSON.stringify(value) ?? String(value)).replace(/\p{Cc}/gu, '?');
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}
