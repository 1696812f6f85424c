// What is made of the service's counters: rates, shares, and series for the charts.

import type { View } from "./feed";
import { each } from "./format";
import type { Conversation, Sample, Status } from "./status";

const RATE_S = 10;
const MINUTE_S = 60;
const SAMPLE_S = 2;
export const MAX_SERIES = 7;
/** What has no line of its own, with what the service itself does not name; no team is called so. */
export const OTHERS = "(others)";
export const UNKNOWN = "(unknown)";

export interface Recent {
  seconds: number;
  turns: number;
  tokens: number;
  refusals: number;
  /** By tenant. */
  compute: Map<string, number>;
  queue: Map<string, number>;
  turnsOf: Map<string, number>;
}

/** Adds up the samples of the last while. */
export function recent(history: Sample[], lastS: number): Recent {
  const newest = history[history.length - 1]?.time_s ?? 0;
  const found: Recent = {
    seconds: 0,
    turns: 0,
    tokens: 0,
    refusals: 0,
    compute: new Map(),
    queue: new Map(),
    turnsOf: new Map(),
  };
  history.forEach((sample, index) => {
    if (sample.time_s <= newest - lastS) return;
    found.seconds += sample.time_s - (history[index - 1]?.time_s ?? sample.time_s - SAMPLE_S);
    for (const tenant of sample.tenants) {
      found.turns += tenant.num_turns;
      found.tokens += tenant.num_tokens;
      found.refusals += tenant.num_refusals;
      add(found.compute, tenant.name, tenant.compute_s);
      add(found.queue, tenant.name, tenant.queue_s);
      add(found.turnsOf, tenant.name, tenant.num_turns);
    }
  });
  return found;
}

function add(sums: Map<string, number>, name: string, value: number): void {
  sums.set(name, (sums.get(name) ?? 0) + value);
}

export interface Tiles {
  tokensPerS: number;
  turnsPerS: number;
  refusalsPerMinute: number;
  p50Ms: number;
  p99Ms: number;
  busy: number;
  /** Rows whose reading came from the cache, of all; null: none was read. */
  hits: number | null;
  hitsOf: string;
}

export function tiles(view: View, status: Status): Tiles {
  const now = recent(view.history, RATE_S);
  const minute = recent(view.history, MINUTE_S);
  const [hits, hitsOf] = cacheHits(view.earlier, status);
  // Percentiles do not add up: the median is that of the turns' tenants, by how many turns they had.
  const weights = status.tenants.map((tenant) => minute.turnsOf.get(tenant.name) ?? 0);
  const all = weights.reduce((sum, weight) => sum + weight, 0);
  const p50Ms = status.tenants.reduce((sum, tenant, index) => sum + tenant.queue_p50_ms * (weights[index] ?? 0), 0);
  return {
    tokensPerS: each(now.tokens, now.seconds),
    turnsPerS: each(now.turns, now.seconds),
    refusalsPerMinute: minute.refusals,
    p50Ms: each(p50Ms, all),
    p99Ms: Math.max(0, ...status.tenants.map((tenant) => tenant.queue_p99_ms)),
    busy: each(
      status.replicas.reduce((sum, replica) => sum + replica.busy_share, 0),
      status.replicas.length,
    ),
    hits,
    hitsOf,
  };
}

function cacheHits(earlier: Status[], status: Status): [number | null, string] {
  let [cached, rows, cachedBefore, rowsBefore] = [0, 0, 0, 0];
  const before = new Map(earlier[0]?.replicas.map((replica) => [replica.address, replica]));
  for (const replica of status.replicas) {
    const old = before.get(replica.address);
    cached += replica.num_cached_rows;
    rows += replica.num_cached_rows + replica.num_read_rows;
    // One that was started again at this address has counted from zero.
    const counts = old !== undefined && old.num_cached_rows <= replica.num_cached_rows ? old : undefined;
    cachedBefore += counts?.num_cached_rows ?? 0;
    rowsBefore += (counts?.num_cached_rows ?? 0) + (counts?.num_read_rows ?? 0);
  }
  if (rows === 0) return [null, "nothing was read"];
  return rows > rowsBefore
    ? [(cached - cachedBefore) / (rows - rowsBefore), "of late"]
    : [cached / rows, "since the start"];
}

/** Turns a second of each open conversation, by what it had before; of none as long as there is one answer only. */
export function paces(earlier: Status[], status: Status): Map<string, number> {
  const before = earlier.find((each) => each.time_s > status.time_s - RATE_S) ?? status;
  const seconds = status.time_s - before.time_s;
  const turns = new Map(before.conversations.map((each) => [each.id, each.num_turns]));
  const found = new Map<string, number>();
  if (seconds <= 0) return found;
  for (const conversation of status.conversations) {
    found.set(conversation.id, each(conversation.num_turns - (turns.get(conversation.id) ?? 0), seconds));
  }
  return found;
}

export interface Share {
  name: string;
  /** Of all computation of the last minute. */
  share: number;
  /** Of it, by weight, among those who computed. */
  due: number;
  queueMs: number;
}

export function shares(history: Sample[], status: Status): Share[] {
  const minute = recent(history, MINUTE_S);
  const names = [...minute.compute.keys()].filter((name) => (minute.compute.get(name) ?? 0) > 0);
  const compute = names.reduce((sum, name) => sum + (minute.compute.get(name) ?? 0), 0);
  const weights = new Map(status.tenants.map((tenant) => [tenant.name, tenant.weight || 1]));
  const weight = names.reduce((sum, name) => sum + (weights.get(name) ?? 1), 0);
  return names
    .map((name) => ({
      name,
      share: each(minute.compute.get(name) ?? 0, compute),
      due: each(weights.get(name) ?? 1, weight),
      queueMs: 1000 * each(minute.queue.get(name) ?? 0, minute.turnsOf.get(name) ?? 0),
    }))
    .sort((one, other) => other.share - one.share);
}

export interface Series {
  name: string;
  values: (number | null)[];
}

/** The tenants that had the most tokens, by name; the rest goes under `others`. */
export function drawn(history: Sample[]): string[] {
  const tokens = new Map<string, number>();
  for (const sample of history) {
    for (const tenant of sample.tenants) add(tokens, tenant.name, tenant.num_tokens);
  }
  const names = [...tokens.keys()].filter((name) => name !== OTHERS);
  names.sort((one, other) => (tokens.get(other) ?? 0) - (tokens.get(one) ?? 0));
  const most = names.slice(0, MAX_SERIES).sort();
  return tokens.size > most.length ? [...most, OTHERS] : most;
}

function byTenant(
  history: Sample[],
  names: string[],
  value: (queue: number, turns: number, tokens: number, seconds: number) => number | null,
): Series[] {
  return names.map((name) => ({
    name,
    values: history.map((sample, index) => {
      const own = sample.tenants.filter(
        (each) => each.name === name || (name === OTHERS && !names.includes(each.name)),
      );
      const sum = (field: "queue_s" | "num_turns" | "num_tokens"): number =>
        own.reduce((total, each) => total + each[field], 0);
      const seconds = sample.time_s - (history[index - 1]?.time_s ?? sample.time_s - SAMPLE_S);
      return value(sum("queue_s"), sum("num_turns"), sum("num_tokens"), seconds);
    }),
  }));
}

export const throughput = (history: Sample[], names: string[]): Series[] =>
  byTenant(history, names, (_queue, _turns, tokens, seconds) => each(tokens, seconds));

export const delays = (history: Sample[], names: string[]): Series[] =>
  byTenant(history, names, (queue, turns) => (turns > 0 ? (1000 * queue) / turns : null));

export const open = (conversations: Conversation[]): Conversation[] =>
  conversations.filter((each) => each.closed_s === 0);

export const closed = (conversations: Conversation[]): Conversation[] =>
  conversations.filter((each) => each.closed_s !== 0);
