/** The reason why a check cannot run. */
export class Skip extends Error {}
