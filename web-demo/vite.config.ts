import { defaultClientConditions, defineConfig } from 'vite';
import { models } from './build/models.ts';
import { finish } from './build/finish.ts';
import { policy } from './build/policy.ts';
import packageJson from './package.json' with { type: 'json' };

/** The headers that browsers require for threads. */
const isolation = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
};

const runtime = `ort-${packageJson.dependencies['onnxruntime-web']}`;

/** The runtime's files refer to each other by name, so they keep their names in a folder with the version. */
const assetFileNames = ({ names }: { names: string[] }) => (names[0]?.startsWith('ort-') ? `${runtime}/[name][extname]` : 'assets/[name]-[hash][extname]');

export default defineConfig({
  // Relative paths, for any folder of a static host.
  base: './',
  plugins: [models(), policy(), finish()],
  resolve: { conditions: ['onnxruntime-web-use-extern-wasm', ...defaultClientConditions] },
  optimizeDeps: { exclude: ['onnxruntime-web'] },
  worker: { format: 'es', rollupOptions: { output: { assetFileNames } } },
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    rollupOptions: {
      input: { index: 'index.html', sw: 'src/sw.ts' },
      output: {
        assetFileNames,
        entryFileNames: ({ name }) => (name === 'sw' ? 'sw.js' : 'assets/[name]-[hash].js'),
      },
    },
  },
  server: { headers: isolation },
  preview: { headers: isolation },
});
