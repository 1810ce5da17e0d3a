/** Tabs that follow the ARIA practices: arrow keys change the tab, and only the selected tab is in the tab order. */
import { VIEWS, type View } from '../state.ts';
import { byId } from './dom.ts';

export class Tabs {
  view: View = 'generate';

  constructor(private readonly onSelect: (view: View) => void) {
    for (const view of VIEWS) {
      const tab = byId(`tab-${view}`);
      tab.addEventListener('click', () => this.select(view));
      tab.addEventListener('keydown', (event) => {
        const at = VIEWS.indexOf(view);
        const last = VIEWS.length - 1;
        const next = { ArrowRight: (at + 1) % VIEWS.length, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        this.select(VIEWS[next]!);
        byId(`tab-${VIEWS[next]!}`).focus();
      });
    }
  }

  private select(view: View): void {
    this.show(view);
    this.onSelect(view);
  }

  show(view: View): void {
    this.view = view;
    for (const other of VIEWS) {
      const tab = byId(`tab-${other}`);
      tab.setAttribute('aria-selected', String(other === view));
      tab.tabIndex = other === view ? 0 : -1;
      byId(other).hidden = other !== view;
    }
    document.body.dataset['view'] = view;
  }
}
