/**
 * Iterates over the fields of an untrusted protobuf message without a schema. Every length is checked against the remaining bytes, and the
 * number of fields is bounded. This finds a few fields in a large file without decoding the rest.
 */

/** The bytes are not a protobuf message. */
export class NotProtobuf extends Error {}

export interface Field {
  number: number;
  /** 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes. */
  wire: number;
  /** The value of a varint; 0 for other types. */
  value: bigint;
  /** The contents of wire type 2; empty for other types. */
  bytes: Uint8Array;
}

const EMPTY = new Uint8Array(0);
const MAX_FIELDS = 2_000_000;

/** The fields of `message`, in order. */
export function* fields(message: Uint8Array, budget = { fields: MAX_FIELDS }): Generator<Field> {
  let at = 0;
  const varint = (): bigint => {
    let value = 0n;
    for (let shift = 0n; shift < 64n; shift += 7n) {
      const byte = message[at++];
      if (byte === undefined) throw new NotProtobuf('it ends within a number');
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
    throw new NotProtobuf('a number has more than 64 bits');
  };
  while (at < message.length) {
    if (--budget.fields < 0) throw new NotProtobuf(`it has more than ${MAX_FIELDS} fields`);
    const tag = varint();
    const number = Number(tag >> 3n);
    const wire = Number(tag & 7n);
    if (number < 1 || number > 0x1fff_ffff) throw new NotProtobuf('a field has an invalid number');
    if (wire === 0) {
      yield { number, wire, value: varint(), bytes: EMPTY };
      continue;
    }
    const length = wire === 1 ? 8n : wire === 5 ? 4n : wire === 2 ? varint() : null;
    if (length === null) throw new NotProtobuf('a field has an unknown type');
    if (length > BigInt(message.length - at)) throw new NotProtobuf('it ends within a field');
    const end = at + Number(length);
    yield { number, wire, value: 0n, bytes: wire === 2 ? message.subarray(at, end) : EMPTY };
    at = end;
  }
}
