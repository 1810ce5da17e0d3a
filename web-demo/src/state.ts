/**
 * What the page's address says: the view, and all that a picture depends on, so that whoever opens it sees the same. It stands behind the
 * `#`, which browsers do not send to servers. Whatever makes no sense in it is passed over.
 */
import { SAMPLERS, type SamplerName } from './engine/meta.ts';
import { MOST_NEIGHBOURS, wrap64 } from './engine/noise.ts';
import { MAX_GUIDANCE, MAX_STEPS } from './engine/sampler.ts';

export const VIEWS = ['generate', 'classify', 'benchmark', 'about'] as const;
export type View = (typeof VIEWS)[number];

export const ALL = 'all';
export const MOST_PICTURES = 64;
const MOST_DEPTH = 16;

export interface Drawing {
  /** A class's name, or {@link ALL}: picture i is of class i modulo their number. */
  breed: string;
  seed: bigint;
  /** The number of the first picture. */
  index: bigint;
  count: number;
  steps: number;
  guidance: number;
  sampler: SamplerName;
  /** The way to a neighbour of that picture; empty for the picture itself. */
  near: number[];
  /** Whether the pictures are the neighbours of that one, the first being itself, instead of the following numbers. */
  around: boolean;
}

export interface Address {
  view: View;
  /** What the address says; what it leaves out is up to the model. Null where it asks for no drawing. */
  drawing: globalThis.Partial<Drawing> | null;
  /** The beginning of the model's hash. */
  model: string | null;
}

/** Digits of a model's hash in an address. */
export const HASH_DIGITS = 12;

export function parse(hash: string): Address {
  const text = hash.replace(/^#/, '');
  const cut = text.indexOf('?');
  const name = cut < 0 ? text : text.slice(0, cut);
  const view = VIEWS.find((view) => view === name) ?? 'generate';
  const query = new URLSearchParams(cut < 0 ? '' : text.slice(cut + 1));
  const drawing: globalThis.Partial<Drawing> = {};
  const breed = query.get('breed');
  if (breed) drawing.breed = breed;
  const seed = natural(query.get('seed'));
  if (seed !== null) drawing.seed = seed;
  const index = natural(query.get('index'));
  if (index !== null) drawing.index = index;
  const count = number(query.get('count'), 1, MOST_PICTURES);
  if (count !== null) drawing.count = Math.trunc(count);
  const steps = number(query.get('steps'), 1, MAX_STEPS);
  if (steps !== null) drawing.steps = Math.trunc(steps);
  const guidance = number(query.get('guidance'), -MAX_GUIDANCE, MAX_GUIDANCE);
  if (guidance !== null) drawing.guidance = guidance;
  const sampler = SAMPLERS.find((name) => name === query.get('sampler'));
  if (sampler) drawing.sampler = sampler;
  const near = path(query.get('near'));
  if (near) Object.assign(drawing, near);
  const model = query.get('model');
  return {
    view,
    drawing: Object.keys(drawing).length > 0 ? drawing : null,
    model: model && /^[0-9a-f]{6,64}$/.test(model) ? model : null,
  };
}

export function format(view: View, drawing: Drawing | null, model: string | null): string {
  if (!drawing) return `#${view}`;
  const query = new URLSearchParams({
    breed: drawing.breed,
    seed: String(drawing.seed),
    index: String(drawing.index),
    count: String(drawing.count),
    steps: String(drawing.steps),
    guidance: String(drawing.guidance),
    sampler: drawing.sampler,
  });
  const near = [...drawing.near.map(String), ...(drawing.around ? ['*'] : [])];
  if (near.length > 0) query.set('near', near.join('.'));
  if (model) query.set('model', model.slice(0, HASH_DIGITS));
  return `#${view}?${query.toString()}`;
}

/** A whole number from 0 that fits 64 bits. */
export function natural(text: string | null): bigint | null {
  if (text === null || !/^\d{1,20}$/.test(text.trim())) return null;
  const value = BigInt(text.trim());
  return value === wrap64(value) ? value : null;
}

function number(text: string | null, least: number, most: number): number | null {
  if (text === null || text.trim() === '') return null;
  const value = Number(text);
  return Number.isFinite(value) && value >= least && value <= most ? value : null;
}

/** `2.5` is one neighbour's way; `2.5.*` all that are around it. */
function path(text: string | null): Pick<Drawing, 'near' | 'around'> | null {
  if (!text || !/^(\d{1,2}(\.\d{1,2})*(\.\*)?|\*)$/.test(text)) return null;
  const parts = text.split('.');
  const around = parts.at(-1) === '*';
  const near = (around ? parts.slice(0, -1) : parts).map(Number);
  return near.length <= MOST_DEPTH && near.every((n) => n <= MOST_NEIGHBOURS) ? { near, around } : null;
}
