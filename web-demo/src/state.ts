/**
 * The state in the page's URL: the view and all settings of the images, so that a link reproduces them. It is in the part after `#`, which
 * browsers do not send to servers. Invalid values are ignored.
 */
import { SAMPLERS, type SamplerName } from './engine/meta.ts';
import { MAX_NEIGHBORS, wrap64 } from './engine/noise.ts';
import { MAX_GUIDANCE, MAX_STEPS } from './engine/sampler.ts';

export const VIEWS = ['generate', 'classify', 'benchmark', 'about'] as const;
export type View = (typeof VIEWS)[number];

export const ALL = 'all';
export const MAX_IMAGES = 64;
const MAX_DEPTH = 16;

/** The settings of a generation of images. */
export interface Generation {
  /** The name of a class, or {@link ALL}: image i has class i modulo the number of classes. */
  breed: string;
  seed: bigint;
  /** The index of the first image. */
  index: bigint;
  count: number;
  steps: number;
  guidance: number;
  sampler: SamplerName;
  /** The path to a neighbor of the first image; empty for the image itself. */
  neighborPath: number[];
  /** True if the images are that image and its neighbors, instead of images with consecutive indices. */
  neighborhood: boolean;
}

export interface Address {
  view: View;
  /** The settings in the URL; the model defines the defaults of the others. Null if the URL has none. */
  generation: Partial<Generation> | null;
  /** The first digits of the model's hash. */
  model: string | null;
}

/** The number of digits of the model's hash in a URL. */
export const HASH_DIGITS = 12;

export function parse(hash: string): Address {
  const text = hash.replace(/^#/, '');
  const cut = text.indexOf('?');
  const name = cut < 0 ? text : text.slice(0, cut);
  const view = VIEWS.find((view) => view === name) ?? 'generate';
  const query = new URLSearchParams(cut < 0 ? '' : text.slice(cut + 1));
  const generation: Partial<Generation> = {};
  const breed = query.get('breed');
  if (breed) generation.breed = breed;
  const seed = parseUint64(query.get('seed'));
  if (seed !== null) generation.seed = seed;
  const index = parseUint64(query.get('index'));
  if (index !== null) generation.index = index;
  const count = parseNumber(query.get('count'), 1, MAX_IMAGES);
  if (count !== null) generation.count = Math.trunc(count);
  const steps = parseNumber(query.get('steps'), 1, MAX_STEPS);
  if (steps !== null) generation.steps = Math.trunc(steps);
  const guidance = parseNumber(query.get('guidance'), -MAX_GUIDANCE, MAX_GUIDANCE);
  if (guidance !== null) generation.guidance = guidance;
  const sampler = SAMPLERS.find((name) => name === query.get('sampler'));
  if (sampler) generation.sampler = sampler;
  const neighbors = parseNeighbors(query.get('near'));
  if (neighbors) Object.assign(generation, neighbors);
  const model = query.get('model');
  return {
    view,
    generation: Object.keys(generation).length > 0 ? generation : null,
    model: model && /^[0-9a-f]{6,64}$/.test(model) ? model : null,
  };
}

export function format(view: View, generation: Generation | null, model: string | null): string {
  if (!generation) return `#${view}`;
  const query = new URLSearchParams({
    breed: generation.breed,
    seed: String(generation.seed),
    index: String(generation.index),
    count: String(generation.count),
    steps: String(generation.steps),
    guidance: String(generation.guidance),
    sampler: generation.sampler,
  });
  const neighbors = [...generation.neighborPath.map(String), ...(generation.neighborhood ? ['*'] : [])];
  if (neighbors.length > 0) query.set('near', neighbors.join('.'));
  if (model) query.set('model', model.slice(0, HASH_DIGITS));
  return `#${view}?${query.toString()}`;
}

/** Parses an unsigned 64-bit integer. */
export function parseUint64(text: string | null): bigint | null {
  if (text === null || !/^\d{1,20}$/.test(text.trim())) return null;
  const value = BigInt(text.trim());
  return value === wrap64(value) ? value : null;
}

function parseNumber(text: string | null, min: number, max: number): number | null {
  if (text === null || text.trim() === '') return null;
  const value = Number(text);
  return Number.isFinite(value) && value >= min && value <= max ? value : null;
}

/** Parses the path of a neighbor, such as `2.5`, or of all neighbors of an image, such as `2.5.*`. */
function parseNeighbors(text: string | null): Pick<Generation, 'neighborPath' | 'neighborhood'> | null {
  if (!text || !/^(\d{1,2}(\.\d{1,2})*(\.\*)?|\*)$/.test(text)) return null;
  const parts = text.split('.');
  const neighborhood = parts.at(-1) === '*';
  const neighborPath = (neighborhood ? parts.slice(0, -1) : parts).map(Number);
  return neighborPath.length <= MAX_DEPTH && neighborPath.every((n) => n <= MAX_NEIGHBORS) ? { neighborPath, neighborhood } : null;
}
