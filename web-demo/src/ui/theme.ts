/** The light or dark theme: that of the system, or of the visitor. */
import { byId, loadSetting, saveSetting } from './dom.ts';

const THEMES = ['system', 'light', 'dark'] as const;
type Theme = (typeof THEMES)[number];

export function startTheme(): void {
  const button = byId<HTMLButtonElement>('theme');
  let theme: Theme = THEMES.find((name) => name === loadSetting('theme')) ?? 'system';
  const apply = () => {
    if (theme === 'system') delete document.documentElement.dataset['theme'];
    else document.documentElement.dataset['theme'] = theme;
    button.textContent = `Theme: ${theme}`;
  };
  button.addEventListener('click', () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]!;
    saveSetting('theme', theme === 'system' ? null : theme);
    apply();
  });
  apply();
}
