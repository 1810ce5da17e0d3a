/** Splits a generation into single images, each with its own file name and link. */
import type { GeneratorMeta } from './engine/meta.ts';
import { wrap64 } from './engine/noise.ts';
import type { ImageSpec } from './engine/protocol.ts';
import { ALL, type Generation } from './state.ts';

/** Fills in missing settings with the model's defaults. */
export function withDefaults(generation: Partial<Generation>, meta: GeneratorMeta): Generation {
  const { sampler, steps, guidance } = meta.defaults;
  const defaults: Generation = { breed: ALL, seed: 0n, index: 0n, count: 1, steps, guidance, sampler, neighborPath: [], neighborhood: false };
  return { ...defaults, ...generation };
}

/** Finds the label of a class by name. As on the command line, case, spaces, `_` and `-` do not matter. */
export function findLabel(name: string, classes: readonly string[]): number | null {
  const normalize = (text: string) => text.toLowerCase().replace(/[ -]/g, '_');
  const label = classes.findIndex((other) => normalize(other) === normalize(name));
  return label < 0 ? null : label;
}

/** The images of a generation; null if the model does not have its class. */
export function imageSpecs(generation: Generation, classes: readonly string[]): ImageSpec[] | null {
  const { breed, count, neighborPath, neighborhood } = generation;
  const breedLabel = breed === ALL ? null : findLabel(breed, classes);
  if (breed !== ALL && breedLabel === null) return null;
  return Array.from({ length: count }, (_, i): ImageSpec => {
    const index = neighborhood ? generation.index : wrap64(generation.index + BigInt(i));
    const label = breedLabel ?? Number(index % BigInt(classes.length));
    return { label, index, neighborPath: neighborhood ? [...neighborPath, i] : [...neighborPath] };
  });
}

/** The settings that generate only one image of a generation. */
export function singleImage(generation: Generation, spec: ImageSpec, classes: readonly string[]): Generation {
  return { ...generation, breed: classes[spec.label]!, index: spec.index, count: 1, neighborPath: trimZeros(spec.neighborPath), neighborhood: false };
}

/** The settings that generate an image and its neighbors, `count` images in all. */
export function variations(generation: Generation, spec: ImageSpec, classes: readonly string[], count: number): Generation {
  return { ...singleImage(generation, spec, classes), count, neighborhood: true };
}

/** Removes zeros from the end of a path: neighbor 0 is the image itself. */
function trimZeros(path: readonly number[]): number[] {
  const end = path.findLastIndex((n) => n !== 0);
  return path.slice(0, end + 1);
}

/** The file name that the command line uses, with the neighbor's path appended. */
export function fileName(generation: Generation, spec: ImageSpec, classes: readonly string[]): string {
  const path = trimZeros(spec.neighborPath);
  const suffix = path.length > 0 ? `_near${path.join('-')}` : '';
  return `${classes[spec.label]}_seed${generation.seed}_${String(spec.index).padStart(4, '0')}${suffix}.png`;
}

/** A class or model name as shown to visitors. */
export const displayName = (name: string) => name.replaceAll('_', ' ');
