/** Builds small valid and invalid ONNX files for tests. */

const encoder = new TextEncoder();

const varint = (value: number): number[] => (value < 128 ? [value] : [(value & 127) | 128, ...varint(Math.floor(value / 128))]);

export const number = (field: number, value: number) => [...varint(field * 8), ...varint(value)];

export function bytes(field: number, contents: ArrayLike<number> | string): number[] {
  const data = typeof contents === 'string' ? encoder.encode(contents) : contents;
  return [...varint(field * 8 + 2), ...varint(data.length), ...Array.from(data)];
}

export interface PortSpec {
  name: string;
  type?: number;
  dims: (number | null)[];
}

export function port({ name, type = 1, dims }: PortSpec): number[] {
  const shape = dims.flatMap((size) => bytes(1, size === null ? bytes(2, 'batch') : number(1, size)));
  return [...bytes(1, name), ...bytes(2, bytes(1, [...number(1, type), ...bytes(2, shape)]))];
}

export interface ModelSpec {
  inputs: PortSpec[];
  outputs: PortSpec[];
  metadata: Record<string, string>;
  weights?: { name: string; dims: number[] }[];
}

export function onnx({ inputs, outputs, metadata, weights = [] }: ModelSpec): Uint8Array {
  const tensors = weights.flatMap(({ name, dims }) => bytes(5, [...dims.flatMap((n) => number(1, n)), ...number(2, 1), ...bytes(8, name)]));
  const graph = [...tensors, ...inputs.flatMap((spec) => bytes(11, port(spec))), ...outputs.flatMap((spec) => bytes(12, port(spec)))];
  const props = Object.entries(metadata).flatMap(([key, value]) => bytes(14, [...bytes(1, key), ...bytes(2, value)]));
  return Uint8Array.from([...number(1, 8), ...bytes(7, graph), ...bytes(8, number(2, 17)), ...props]);
}

type Json = Record<string, unknown>;

export const generatorJson = (): Json => ({
  format_version: 1,
  config: { kind: 'tiny-dit', image_size: 8, patch_size: 4, width: 16, depth: 1, heads: 2, mlp_width: 32, classes: 2, layout: 'modern' },
  image_size: 8,
  classes: ['Siamese', 'Sphynx'],
  null_label: 2,
  value_range: [-1, 1],
  prediction: 'x',
  sampler: { sampler: 'heun', steps: 20, guidance: 2, guidance_interval: [0.1, 0.9] },
});

export const classifierJson = (): Json => ({
  format_version: 1,
  config: { kind: 'resnet', depth: 18, width: 8, classes: 3, head: 'plain', batch_norm: false },
  image_size: 32,
  classes: ['a', 'b', 'other'],
  preprocessing: { resize: 36, mean: [0.5, 0.4, 0.3], std: [0.2, 0.3, 0.4] },
});

export const generator = (json: Json = generatorJson(), change: Partial<ModelSpec> = {}) =>
  onnx({
    inputs: [{ name: 'x', dims: [null, 3, 8, 8] }, { name: 't', dims: [null] }, { name: 'label', type: 7, dims: [null] }],
    outputs: [{ name: 'prediction', dims: [null, 3, 8, 8] }],
    metadata: { 'tiny-cats': JSON.stringify(json) },
    weights: [{ name: 'w', dims: [4, 6] }],
    ...change,
  });

export const classifier = (json: Json = classifierJson(), change: Partial<ModelSpec> = {}) =>
  onnx({
    inputs: [{ name: 'input', dims: [null, 3, 32, 32] }],
    outputs: [{ name: 'output', dims: [null, 3] }],
    metadata: { 'tiny-cats': JSON.stringify(json) },
    ...change,
  });
