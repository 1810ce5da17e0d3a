import type { Plugin } from 'vite';

/** Removes the content security policy during development, because it blocks the development server's client. */
export function policy(): Plugin {
  return {
    name: 'tiny-cats-policy',
    apply: 'serve',
    transformIndexHtml: (html) => html.replace(/<meta\s+http-equiv="Content-Security-Policy"[^>]*>/, ''),
  };
}
