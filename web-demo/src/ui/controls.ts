/** The fields of a drawing. Whatever is typed, what they say makes sense: a field that does not is as it was. */
import { SAMPLERS } from '../engine/meta.ts';
import { MAX_GUIDANCE, MAX_STEPS } from '../engine/sampler.ts';
import { type Drawing, MOST_PICTURES, natural } from '../state.ts';
import { byId } from './dom.ts';

type Values = Pick<Drawing, 'seed' | 'index' | 'count' | 'steps' | 'guidance' | 'sampler'>;

export class Controls {
  private readonly seedField = byId<HTMLInputElement>('seed');
  private readonly firstField = byId<HTMLInputElement>('first');
  private readonly countField = byId<HTMLInputElement>('count');
  private readonly samplerField = byId<HTMLSelectElement>('sampler');
  private values: Values = { seed: 0n, index: 0n, count: 4, steps: 20, guidance: 2, sampler: 'heun' };

  constructor(private readonly changed: () => void) {
    this.field(this.seedField, (text) => assign(this.values, 'seed', natural(text)));
    this.field(this.firstField, (text) => assign(this.values, 'index', natural(text)));
    this.field(this.countField, (text) => assign(this.values, 'count', whole(text, 1, MOST_PICTURES)));
    this.field(this.samplerField, (text) => assign(this.values, 'sampler', SAMPLERS.find((name) => name === text) ?? null));
    this.both('steps', (text) => assign(this.values, 'steps', whole(text, 1, MAX_STEPS)));
    this.both('guidance', (text) => assign(this.values, 'guidance', between(text, -MAX_GUIDANCE, MAX_GUIDANCE)));
  }

  private field(element: HTMLInputElement | HTMLSelectElement, take: (text: string) => boolean): void {
    element.addEventListener('change', () => {
      const taken = take(element.value);
      this.show();
      if (taken) this.changed();
    });
  }

  /** A number with a slider beside it. */
  private both(id: string, take: (text: string) => boolean): void {
    const slider = byId<HTMLInputElement>(`${id}-slider`);
    this.field(byId<HTMLInputElement>(id), take);
    this.field(slider, take);
    slider.addEventListener('input', () => (byId<HTMLInputElement>(id).value = slider.value));
  }

  read(): Values {
    // What has the focus when Enter is pressed has not told of its change yet.
    const active = document.activeElement;
    if (active instanceof HTMLInputElement && active.type !== 'radio') active.dispatchEvent(new Event('change'));
    return { ...this.values };
  }

  write(values: Values): void {
    const { seed, index, count, steps, guidance, sampler } = values;
    this.values = { seed, index, count, steps, guidance, sampler };
    this.show();
  }

  set seed(seed: bigint) {
    this.values.seed = seed;
    this.show();
  }

  private show(): void {
    const { seed, index, count, steps, guidance, sampler } = this.values;
    this.seedField.value = String(seed);
    this.firstField.value = String(index);
    this.countField.value = String(count);
    this.samplerField.value = sampler;
    for (const [id, value] of [['steps', steps], ['guidance', guidance]] as const) {
      byId<HTMLInputElement>(id).value = String(value);
      byId<HTMLInputElement>(`${id}-slider`).value = String(value);
    }
  }
}

/** Whether there was a value, and another one than before. */
function assign<K extends keyof Values>(values: Values, key: K, value: Values[K] | null): boolean {
  if (value === null || values[key] === value) return false;
  values[key] = value;
  return true;
}

function between(text: string, least: number, most: number): number | null {
  const value = Number(text);
  return text.trim() !== '' && Number.isFinite(value) ? Math.min(Math.max(value, least), most) : null;
}

function whole(text: string, least: number, most: number): number | null {
  const value = between(text, least, most);
  return value === null ? null : Math.round(value);
}
