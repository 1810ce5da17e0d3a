/** Messages: what went wrong, until the next success or a click; and hints, which are no errors. */
import { byId } from './dom.ts';

export function complain(error: string): void {
  const notice = byId('notice');
  notice.textContent = error;
  notice.hidden = false;
}

export function forgive(): void {
  byId('notice').hidden = true;
  byId('notice').textContent = '';
}

/** A hint, with something to do about it where there is. */
export function hint(text: string, action?: { text: string; run(): void }): void {
  byId('hint-text').textContent = text;
  const button = byId<HTMLButtonElement>('hint-action');
  button.textContent = action?.text ?? 'Dismiss';
  button.onclick = () => {
    byId('hint').hidden = true;
    action?.run();
  };
  byId('hint').hidden = false;
}
