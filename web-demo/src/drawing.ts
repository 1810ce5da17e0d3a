/** From what is asked for to single pictures, each with a name and an address of its own. */
import type { GeneratorMeta } from './engine/meta.ts';
import { wrap64 } from './engine/noise.ts';
import type { Draw } from './engine/protocol.ts';
import { ALL, type Drawing } from './state.ts';

/** `drawing` with what it leaves out as the model advises. */
export function complete(drawing: Partial<Drawing>, meta: GeneratorMeta): Drawing {
  const { sampler, steps, guidance } = meta.defaults;
  const defaults: Drawing = { breed: ALL, seed: 0n, index: 0n, count: 1, steps, guidance, sampler, near: [], around: false };
  return { ...defaults, ...drawing };
}

/** The label of the class called `name`, as the command line finds it: case, spaces, `_` and `-` do not matter. */
export function labelOf(name: string, classes: readonly string[]): number | null {
  const plain = (text: string) => text.toLowerCase().replace(/[ -]/g, '_');
  const label = classes.findIndex((known) => plain(known) === plain(name));
  return label < 0 ? null : label;
}

/** The pictures of `drawing`; null when it names no class of the model. */
export function draws(drawing: Drawing, classes: readonly string[]): Draw[] | null {
  const { breed, index, count, near, around } = drawing;
  const one = breed === ALL ? null : labelOf(breed, classes);
  if (breed !== ALL && one === null) return null;
  return Array.from({ length: count }, (_, i): Draw => {
    const number = around ? index : wrap64(index + BigInt(i));
    const label = one ?? Number(number % BigInt(classes.length));
    return { label, index: number, near: around ? [...near, i] : [...near] };
  });
}

/** What draws picture `draw` of `drawing` alone. */
export function alone(drawing: Drawing, draw: Draw, classes: readonly string[]): Drawing {
  return { ...drawing, breed: classes[draw.label]!, index: draw.index, count: 1, near: withoutLastZeros(draw.near), around: false };
}

/** What draws pictures that are like picture `draw`, and itself before them. */
export function likeIt(drawing: Drawing, draw: Draw, classes: readonly string[], count: number): Drawing {
  return { ...alone(drawing, draw, classes), count, around: true };
}

/** Neighbour 0 is the picture itself, so it adds nothing at the end of a way. */
function withoutLastZeros(near: readonly number[]): number[] {
  const end = near.findLastIndex((n) => n !== 0);
  return near.slice(0, end + 1);
}

/** As the command line calls the file; a neighbour's way follows. */
export function fileName(drawing: Drawing, draw: Draw, classes: readonly string[]): string {
  const way = withoutLastZeros(draw.near);
  const near = way.length > 0 ? `_near${way.join('-')}` : '';
  return `${classes[draw.label]}_seed${drawing.seed}_${String(draw.index).padStart(4, '0')}${near}.png`;
}

/** A class's name for reading. */
export const readable = (name: string) => name.replaceAll('_', ' ');
