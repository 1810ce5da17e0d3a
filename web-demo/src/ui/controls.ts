/** The input fields of a generation. An invalid input is reset to its last valid value. */
import { SAMPLERS } from '../engine/meta.ts';
import { MAX_GUIDANCE, MAX_STEPS } from '../engine/sampler.ts';
import { type Generation, MAX_IMAGES, parseUint64 } from '../state.ts';
import { byId } from './dom.ts';

type Values = Pick<Generation, 'seed' | 'index' | 'count' | 'steps' | 'guidance' | 'sampler'>;

export class Controls {
  private readonly seedField = byId<HTMLInputElement>('seed');
  private readonly firstField = byId<HTMLInputElement>('first');
  private readonly countField = byId<HTMLInputElement>('count');
  private readonly samplerField = byId<HTMLSelectElement>('sampler');
  private values: Values = { seed: 0n, index: 0n, count: 4, steps: 20, guidance: 2, sampler: 'heun' };

  constructor(private readonly onChange: () => void) {
    this.field(this.seedField, (text) => assign(this.values, 'seed', parseUint64(text)));
    this.field(this.firstField, (text) => assign(this.values, 'index', parseUint64(text)));
    this.field(this.countField, (text) => assign(this.values, 'count', parseInteger(text, 1, MAX_IMAGES)));
    this.field(this.samplerField, (text) => assign(this.values, 'sampler', SAMPLERS.find((name) => name === text) ?? null));
    this.fieldWithSlider('steps', (text) => assign(this.values, 'steps', parseInteger(text, 1, MAX_STEPS)));
    this.fieldWithSlider('guidance', (text) => assign(this.values, 'guidance', parseClamped(text, -MAX_GUIDANCE, MAX_GUIDANCE)));
  }

  private field(element: HTMLInputElement | HTMLSelectElement, update: (text: string) => boolean): void {
    element.addEventListener('change', () => {
      const hasChanged = update(element.value);
      this.show();
      if (hasChanged) this.onChange();
    });
  }

  /** Connects a number field and its slider. */
  private fieldWithSlider(id: string, update: (text: string) => boolean): void {
    const slider = byId<HTMLInputElement>(`${id}-slider`);
    this.field(byId<HTMLInputElement>(id), update);
    this.field(slider, update);
    slider.addEventListener('input', () => (byId<HTMLInputElement>(id).value = slider.value));
  }

  read(): Values {
    // A field that still has the focus when Enter is pressed has not sent its change event.
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

/** Assigns a valid value; true if it is new. */
function assign<K extends keyof Values>(values: Values, key: K, value: Values[K] | null): boolean {
  if (value === null || values[key] === value) return false;
  values[key] = value;
  return true;
}

function parseClamped(text: string, min: number, max: number): number | null {
  const value = Number(text);
  return text.trim() !== '' && Number.isFinite(value) ? Math.min(Math.max(value, min), max) : null;
}

function parseInteger(text: string, min: number, max: number): number | null {
  const value = parseClamped(text, min, max);
  return value === null ? null : Math.round(value);
}
