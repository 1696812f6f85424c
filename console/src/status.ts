// What /api/status says: protobuf's JSON of GetStatusResponse, where what is zero is left out and 64-bit numbers are
// strings. `read` puts both right, and trusts nothing else.

export interface Replica {
  address: string;
  uptime_s: number;
  num_conversations: number;
  queued_tokens: number;
  queue_s: number;
  tokens_per_s: number;
  busy_share: number;
  num_passes: number;
  num_computed: number;
  num_tenants_in_passes: number;
  num_retained: number;
  num_recomputed: number;
  retained_bytes: number;
  num_cached_rows: number;
  num_read_rows: number;
  cache_bytes: number;
  memory_bytes: number;
}

export interface Tenant {
  name: string;
  num_conversations: number;
  num_turns: number;
  num_tokens: number;
  request_bytes: number;
  answer_bytes: number;
  queue_s: number;
  compute_s: number;
  num_refusals: number;
  weight: number;
  queue_p50_ms: number;
  queue_p99_ms: number;
}

export interface Conversation {
  id: string;
  tenant: string;
  peer: string;
  replica: string;
  opened_s: number;
  closed_s: number;
  why: string;
  num_turns: number;
  num_tokens: number;
  num_bytes: number;
  queue_s: number;
  compute_s: number;
  num_refusals: number;
}

export interface Refusal {
  time_s: number;
  tenant: string;
  peer: string;
  replica: string;
  conversation: string;
  reason: string;
  message: string;
  count: number;
}

export interface TenantSample {
  name: string;
  num_turns: number;
  num_tokens: number;
  queue_s: number;
  compute_s: number;
  num_refusals: number;
}

export interface Sample {
  time_s: number;
  tenants: TenantSample[];
  queued_tokens: number;
  busy_share: number;
  num_replicas: number;
}

export interface Status {
  time_s: number;
  teacher: string;
  service_version: string;
  tenant: string;
  sees_all: boolean;
  replicas: Replica[];
  tenants: Tenant[];
  conversations: Conversation[];
  refusals: Refusal[];
  history: Sample[];
}

type Json = Record<string, unknown>;

function object(value: unknown): Json {
  return typeof value === "object" && value !== null ? (value as Json) : {};
}

function number(value: unknown): number {
  const found = Number(value ?? 0);
  return Number.isFinite(found) ? found : 0;
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function list<T>(value: unknown, one: (json: Json) => T): T[] {
  return Array.isArray(value) ? value.map((each) => one(object(each))) : [];
}

function fields<S extends string, N extends string>(
  json: Json,
  texts: readonly S[],
  numbers: readonly N[],
): Record<S, string> & Record<N, number> {
  const found: Json = {};
  for (const name of texts) found[name] = text(json[name]);
  for (const name of numbers) found[name] = number(json[name]);
  return found as Record<S, string> & Record<N, number>;
}

const COSTS = ["num_turns", "num_tokens", "queue_s", "compute_s", "num_refusals"] as const;

const replica = (json: Json): Replica =>
  fields(
    json,
    ["address"],
    [
      "uptime_s",
      "num_conversations",
      "queued_tokens",
      "queue_s",
      "tokens_per_s",
      "busy_share",
      "num_passes",
      "num_computed",
      "num_tenants_in_passes",
      "num_retained",
      "num_recomputed",
      "retained_bytes",
      "num_cached_rows",
      "num_read_rows",
      "cache_bytes",
      "memory_bytes",
    ],
  );

const tenant = (json: Json): Tenant =>
  fields(
    json,
    ["name"],
    [...COSTS, "num_conversations", "request_bytes", "answer_bytes", "weight", "queue_p50_ms", "queue_p99_ms"],
  );

const conversation = (json: Json): Conversation =>
  fields(json, ["id", "tenant", "peer", "replica", "why"], [...COSTS, "opened_s", "closed_s", "num_bytes"]);

const refusal = (json: Json): Refusal =>
  fields(json, ["tenant", "peer", "replica", "conversation", "reason", "message"], ["time_s", "count"]);

const sample = (json: Json): Sample => ({
  ...fields(json, [], ["time_s", "queued_tokens", "busy_share", "num_replicas"]),
  tenants: list(json.tenants, (each) => fields(each, ["name"], COSTS)),
});

export function read(value: unknown): Status {
  const json = object(value);
  return {
    ...fields(json, ["teacher", "service_version", "tenant"], ["time_s"]),
    sees_all: json.sees_all === true,
    replicas: list(json.replicas, replica),
    tenants: list(json.tenants, tenant),
    conversations: list(json.conversations, conversation),
    refusals: list(json.refusals, refusal),
    history: list(json.history, sample),
  };
}
