/** Error messages, which stay until the next success, and hints. */
import { byId } from './dom.ts';

export function showError(error: string): void {
  const notice = byId('notice');
  notice.textContent = error;
  notice.hidden = false;
}

export function clearError(): void {
  byId('notice').hidden = true;
  byId('notice').textContent = '';
}

/** Shows a hint with an optional action. */
export function showHint(text: string, action?: { text: string; run(): void }): void {
  byId('hint-text').textContent = text;
  const button = byId<HTMLButtonElement>('hint-action');
  button.textContent = action?.text ?? 'Dismiss';
  button.onclick = () => {
    byId('hint').hidden = true;
    action?.run();
  };
  byId('hint').hidden = false;
}
