/**
 * Reads the inputs, outputs and metadata of an ONNX file. Field numbers are those of `onnx.proto`.
 */
import { fileError } from './errors.ts';
import { NotProtobuf, fields } from './protobuf.ts';

/** An input or output of the graph. */
export interface Port {
  name: string;
  /** ONNX's number of the element type: 1 float, 7 int64; 0 if it is not a tensor. */
  type: number;
  /** The sizes of its axes; null for a dynamic axis, such as the batch. */
  dims: (number | null)[];
}

export interface OnnxFile {
  inputs: Port[];
  outputs: Port[];
  metadata: Map<string, string>;
  /** Number of elements of all floating-point weights. */
  parameters: number;
  opset: number;
}

const FLOAT = 1;
const FLOAT16 = 10;
const MAX_TEXT = 1 << 20;

/** Reads a file in memory; errors name it `name`. */
export function readOnnx(bytes: Uint8Array, name: string): OnnxFile {
  if (bytes.length === 0) throw fileError(name, 'size', 'expected an ONNX model, found an empty file');
  if (bytes[8] === 0x7b) throw fileError(name, 'format', 'expected .onnx, found a .safetensors file; export it first');
  if (bytes[0] === 0x50 && bytes[1] === 0x4b) throw fileError(name, 'format', 'expected .onnx, found a zip file such as .pt');
  try {
    return read(bytes, name);
  } catch (error) {
    if (error instanceof NotProtobuf) {
      throw fileError(name, 'format', `expected an ONNX model, but ${error.message}; the file is truncated, damaged or not an ONNX model`);
    }
    throw error;
  }
}

function read(bytes: Uint8Array, name: string): OnnxFile {
  // One budget for the whole file, so that nested graphs share it.
  const budget = { fields: 2_000_000 };
  const file: OnnxFile = { inputs: [], outputs: [], metadata: new Map(), parameters: 0, opset: 0 };
  let graphs = 0;
  for (const field of fields(bytes, budget)) {
    if (field.wire !== 2) continue;
    if (field.number === 7) {
      graphs++;
      readGraph(field.bytes, file, budget);
    } else if (field.number === 8) {
      readOpset(field.bytes, file, budget);
    } else if (field.number === 14) {
      const [key, value] = entry(field.bytes, name, budget);
      file.metadata.set(key, value);
    }
  }
  if (graphs !== 1) throw fileError(name, 'graph', `expected an ONNX model with one graph, found ${graphs || 'none'}`);
  if (file.inputs.length === 0 || file.outputs.length === 0) throw fileError(name, 'graph', 'expected inputs and outputs');
  return file;
}

type Budget = { fields: number };

function readGraph(bytes: Uint8Array, file: OnnxFile, budget: Budget): void {
  const initializers = new Set<string>();
  for (const field of fields(bytes, budget)) {
    if (field.wire !== 2) continue;
    if (field.number === 5) {
      const tensor = readTensor(field.bytes, budget);
      initializers.add(tensor.name);
      file.parameters += tensor.parameters;
    } else if (field.number === 11) file.inputs.push(readPort(field.bytes, budget));
    else if (field.number === 12) file.outputs.push(readPort(field.bytes, budget));
  }
  // Old files list their weights among the inputs.
  file.inputs = file.inputs.filter((port) => !initializers.has(port.name));
}

function readTensor(bytes: Uint8Array, budget: Budget): { name: string; parameters: number } {
  let name = '';
  let type = 0;
  let count = 1;
  let rank = 0;
  const axis = (value: bigint) => {
    count *= Number(value);
    rank++;
  };
  for (const field of fields(bytes, budget)) {
    if (field.number === 1 && field.wire === 0) axis(field.value);
    else if (field.number === 1 && field.wire === 2) for (const value of packed(field.bytes)) axis(value);
    else if (field.number === 2 && field.wire === 0) type = Number(field.value);
    else if (field.number === 8 && field.wire === 2) name = text(field.bytes);
  }
  const floating = type === FLOAT || type === FLOAT16;
  return { name, parameters: floating && rank > 0 && Number.isSafeInteger(count) ? count : 0 };
}

function* packed(bytes: Uint8Array): Generator<bigint> {
  let value = 0n;
  let shift = 0n;
  for (const byte of bytes) {
    value |= BigInt(byte & 0x7f) << shift;
    shift += 7n;
    if (byte < 0x80) {
      yield value;
      value = shift = 0n;
    } else if (shift > 63n) throw new NotProtobuf('a number has more than 64 bits');
  }
  if (shift > 0n) throw new NotProtobuf('it ends within a number');
}

/** ValueInfoProto: name, then type → tensor_type → elem_type and shape → dim → dim_value. */
function readPort(bytes: Uint8Array, budget: Budget): Port {
  const port: Port = { name: '', type: 0, dims: [] };
  for (const field of fields(bytes, budget)) {
    if (field.number === 1) port.name = text(field.bytes);
    if (field.number !== 2) continue;
    for (const kind of fields(field.bytes, budget)) {
      if (kind.number !== 1) continue;
      for (const tensor of fields(kind.bytes, budget)) {
        if (tensor.number === 1) port.type = Number(tensor.value);
        if (tensor.number !== 2) continue;
        for (const dim of fields(tensor.bytes, budget)) if (dim.number === 1) port.dims.push(size(dim.bytes, budget));
      }
    }
  }
  return port;
}

function size(dim: Uint8Array, budget: Budget): number | null {
  for (const field of fields(dim, budget)) if (field.number === 1 && field.wire === 0) return Number(field.value);
  return null;
}

function readOpset(bytes: Uint8Array, file: OnnxFile, budget: Budget): void {
  let domain = '';
  let version = 0;
  for (const field of fields(bytes, budget)) {
    if (field.number === 1) domain = text(field.bytes);
    else if (field.number === 2) version = Number(field.value);
  }
  if (domain === '' || domain === 'ai.onnx') file.opset = version;
}

function entry(bytes: Uint8Array, name: string, budget: Budget): [string, string] {
  let key = '';
  let value = '';
  for (const field of fields(bytes, budget)) {
    if (field.bytes.length > MAX_TEXT) {
      throw fileError(name, 'metadata_props', `expected at most ${MAX_TEXT} bytes, found ${field.bytes.length}`);
    }
    if (field.number === 1) key = text(field.bytes);
    else if (field.number === 2) value = text(field.bytes);
  }
  return [key, value];
}

const decoder = new TextDecoder();
const text = (bytes: Uint8Array) => decoder.decode(bytes.length > MAX_TEXT ? bytes.subarray(0, MAX_TEXT) : bytes);
