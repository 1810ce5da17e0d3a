import type { Plugin } from 'vite';

/** The page's content security policy forbids what the development server's client does; a built page keeps it. */
export function policy(): Plugin {
  return {
    name: 'tiny-cats-policy',
    apply: 'serve',
    transformIndexHtml: (html) => html.replace(/<meta\s+http-equiv="Content-Security-Policy"[^>]*>/, ''),
  };
}
