/** Errors that are meant for the reader of the page. */

/** One line that says what is wrong: of which file or setting, and what was expected. Anything else that is thrown is a defect of ours. */
export class UserError extends Error {
  override readonly name = 'UserError';
}

/** `file: field: what was expected and found`, as the command line words it. */
export function fileError(file: string, field: string, message: string): UserError {
  return new UserError(field ? `${file}: ${field}: ${message}` : `${file}: ${message}`);
}

/** The work was called off by its owner. */
export class Cancelled extends Error {
  override readonly name = 'Cancelled';
  constructor() {
    super('cancelled');
  }
}

/** One line about anything that was thrown. */
export function describe(error: unknown): string {
  const text = error instanceof Error ? error.message || error.name : String(error);
  return text.split('\n', 1)[0] ?? '';
}
