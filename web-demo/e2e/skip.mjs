/** A check that cannot be made here, and why. */
export class Skip extends Error {}
