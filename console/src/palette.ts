// A colour and a line's pattern for each tenant, which it keeps as long as the page is open.

import { OTHERS } from "./figures";

const NUM_COLOURS = 8;
const PATTERNS = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [14, 4], [3, 6], [1, 2]];
const taken = new Map<string, number>();

function index(name: string): number {
  const known = taken.get(name);
  if (known !== undefined) return known;
  taken.set(name, taken.size % NUM_COLOURS);
  return index(name);
}

/** The number of a tenant's colour, as in the style sheet. */
export const colourIndex = (name: string): string => (name === OTHERS ? "others" : String(index(name)));

export const pattern = (name: string): number[] => (name === OTHERS ? [1, 3] : (PATTERNS[index(name)] ?? []));

/** A colour of the style sheet, as it is now: light or dark. */
export function colour(variable: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${variable}`).trim();
}
