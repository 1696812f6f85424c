// Numbers and times for people: three digits are enough, and a unit is always said.

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(value: number): string {
  return value < 10_000 ? plain.format(value) : compact.format(value);
}

export function rate(value: number): string {
  if (value === 0) return "0";
  if (value < 10) return String(Number(value.toFixed(value < 1 ? 2 : 1)));
  return count(value);
}

export function millis(ms: number): string {
  if (ms === 0) return "0 ms";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${ms.toFixed(0)} ms`;
  return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
}

export function percent(share: number): string {
  const value = share * 100;
  return `${value > 0 && value < 1 ? "<1" : value.toFixed(0)} %`;
}

export function bytes(value: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}

export function span(seconds: number): string {
  if (seconds < 1) return "now";
  if (seconds < 60) return `${seconds.toFixed(0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

export function ago(seconds: number): string {
  if (seconds < 1.5) return "just now";
  return seconds >= 60 && seconds < 3600 ? `${Math.floor(seconds / 60)} min ago` : `${span(seconds)} ago`;
}

const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function clock(timeS: number): string {
  return clockFormat.format(timeS * 1000);
}

export function each(total: number, number: number): number {
  return number > 0 ? total / number : 0;
}
