/** Tabs as the ARIA practices describe them: arrow keys move, one tab is in the order of the Tab key. */
import { VIEWS, type View } from '../state.ts';
import { byId } from './dom.ts';

export class Tabs {
  view: View = 'generate';

  constructor(private readonly chosen: (view: View) => void) {
    for (const view of VIEWS) {
      const tab = byId(`tab-${view}`);
      tab.addEventListener('click', () => this.choose(view));
      tab.addEventListener('keydown', (event) => {
        const at = VIEWS.indexOf(view);
        const last = VIEWS.length - 1;
        const next = { ArrowRight: (at + 1) % VIEWS.length, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        this.choose(VIEWS[next]!);
        byId(`tab-${VIEWS[next]!}`).focus();
      });
    }
  }

  private choose(view: View): void {
    this.show(view);
    this.chosen(view);
  }

  show(view: View): void {
    this.view = view;
    for (const each of VIEWS) {
      const tab = byId(`tab-${each}`);
      tab.setAttribute('aria-selected', String(each === view));
      tab.tabIndex = each === view ? 0 : -1;
      byId(each).hidden = each !== view;
    }
    document.body.dataset['view'] = view;
  }
}
