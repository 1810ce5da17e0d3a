/** Errors that are shown to the visitor. */

/** A one-line error that names the file or setting and what was expected. All other errors are bugs of the page. */
export class UserError extends Error {
  override readonly name = 'UserError';
}

/** Formats an error like the command line: `file: field: expected …, found …`. */
export function fileError(file: string, field: string, message: string): UserError {
  return new UserError(field ? `${file}: ${field}: ${message}` : `${file}: ${message}`);
}

/** The call was canceled by its caller. */
export class Canceled extends Error {
  override readonly name = 'Canceled';
  constructor() {
    super('canceled');
  }
}

/** A one-line description of anything that was thrown. */
export function describe(error: unknown): string {
  const text = error instanceof Error ? error.message || error.name : String(error);
  return text.split('\n', 1)[0] ?? '';
}
