// What is going on, row by row.

import { UNKNOWN, closed, open, paces } from "./figures";
import type { View } from "./feed";
import { ago, bytes, count, each, millis, percent, rate, span } from "./format";
import { colourIndex } from "./palette";
import { meaning } from "./reasons";
import type { Conversation, Refusal, Replica, Status, Tenant } from "./status";
import { type Column, Table } from "./table";

const ID_LENGTH = 8;

function Name({ name }: { name: string }) {
  if (name === "" || name === UNKNOWN) return <span class="nobody">{UNKNOWN}</span>;
  return (
    <span class="tenant">
      <span class={`swatch tenant-${colourIndex(name)}`} aria-hidden="true" /> {name}
    </span>
  );
}

const Id = ({ id }: { id: string }) => (id === "" ? <>–</> : <code title={id}>{id.slice(0, ID_LENGTH)}</code>);

function Meter({ share }: { share: number }) {
  return (
    <span class="meter">
      <span class="track" aria-hidden="true">
        <span class="bar" style={{ width: `${Math.min(100, share * 100)}%` }} />
      </span>
      <span class="value">{percent(share)}</span>
    </span>
  );
}

const queueOf = (row: { queue_s: number; num_turns: number }): string => millis(1000 * each(row.queue_s, row.num_turns));
const computeOf = (row: { compute_s: number; num_turns: number }): string =>
  millis(1000 * each(row.compute_s, row.num_turns));

export function Talking({ view, status }: { view: View; status: Status }) {
  const pace = paces(view.earlier, status);
  const paceOf = (id: string) => {
    const known = pace.get(id);
    return known === undefined ? "–" : rate(known);
  };
  const rows = open(status.conversations);
  const columns: (Column<Conversation> | false)[] = [
    { name: "Tenant", cell: (row) => <Name name={row.tenant} />, isHeader: true },
    { name: "Conversation", cell: (row) => <Id id={row.id} /> },
    { name: "Replica", cell: (row) => <code>{row.replica || "–"}</code>, isExtra: true },
    { name: "For", cell: (row) => span(status.time_s - row.opened_s), isNumber: true, isExtra: true },
    { name: "Turns", cell: (row) => count(row.num_turns), isNumber: true },
    { name: "Turns/s", cell: (row) => paceOf(row.id), isNumber: true },
    { name: "Queue a turn", cell: queueOf, isNumber: true },
    { name: "Compute a turn", cell: computeOf, isNumber: true, isExtra: true },
    { name: "Refused", cell: (row) => count(row.num_refusals), isNumber: true, isExtra: true },
  ];
  return (
    <Table
      title="Talking now"
      rows={rows}
      columns={columns}
      rowKey={(row) => row.id}
      empty="Nobody talks at the moment."
    />
  );
}

export function Tenants({ status }: { status: Status }) {
  const columns: Column<Tenant>[] = [
    { name: "Tenant", cell: (row) => <Name name={row.name} />, isHeader: true },
    { name: "Talking", cell: (row) => count(row.num_conversations), isNumber: true },
    { name: "Turns", cell: (row) => count(row.num_turns), isNumber: true },
    { name: "Tokens", cell: (row) => count(row.num_tokens), isNumber: true, isExtra: true },
    { name: "Compute", cell: (row) => span(row.compute_s), isNumber: true, isExtra: true },
    { name: "Weight", cell: (row) => rate(row.weight), isNumber: true, isExtra: true },
    { name: "Queue p50", cell: (row) => millis(row.queue_p50_ms), isNumber: true },
    { name: "p99", cell: (row) => millis(row.queue_p99_ms), isNumber: true },
    { name: "Bytes in", cell: (row) => bytes(row.request_bytes), isNumber: true, isExtra: true },
    { name: "Bytes out", cell: (row) => bytes(row.answer_bytes), isNumber: true, isExtra: true },
    { name: "Refused", cell: (row) => count(row.num_refusals), isNumber: true },
  ];
  return (
    <Table
      title={status.sees_all ? "Tenants" : "Your team"}
      note="since the replicas came up"
      rows={status.tenants}
      columns={columns}
      rowKey={(row) => row.name}
      empty="No tenant has talked yet."
    />
  );
}

export function Replicas({ status }: { status: Status }) {
  const columns: Column<Replica>[] = [
    { name: "Replica", cell: (row) => <code>{row.address}</code>, isHeader: true },
    { name: "Up for", cell: (row) => span(row.uptime_s), isNumber: true, isExtra: true },
    { name: "Talking", cell: (row) => count(row.num_conversations), isNumber: true },
    { name: "Busy", cell: (row) => <Meter share={row.busy_share} />, isLong: true },
    { name: "Waits", cell: (row) => millis(row.queue_s * 1000), isNumber: true },
    { name: "Tokens/s busy", cell: (row) => rate(row.tokens_per_s), isNumber: true },
    { name: "Turns a pass", cell: (row) => each(row.num_computed, row.num_passes).toFixed(1), isNumber: true },
    {
      name: "Tenants a pass",
      cell: (row) => each(row.num_tenants_in_passes, row.num_passes).toFixed(1),
      isNumber: true,
      isExtra: true,
    },
    {
      name: "Graphs reused",
      cell: (row) => percent(each(row.num_retained, row.num_retained + row.num_recomputed)),
      isNumber: true,
      isExtra: true,
    },
    { name: "Cache", cell: (row) => bytes(row.cache_bytes), isNumber: true, isExtra: true },
    { name: "Memory", cell: (row) => bytes(row.memory_bytes), isNumber: true, isExtra: true },
  ];
  return (
    <Table
      title="Replicas"
      rows={status.replicas}
      columns={columns}
      rowKey={(row) => row.address}
      empty="No replica is up."
    />
  );
}

export function Refusals({ status }: { status: Status }) {
  const columns: (Column<Refusal> | false)[] = [
    { name: "When", cell: (row) => ago(status.time_s - row.time_s) },
    { name: "Tenant", cell: (row) => <Name name={row.tenant} />, isHeader: true },
    { name: "Reason", cell: (row) => <span class="reason">{meaning(row.reason).label}</span> },
    {
      name: "What they were told, and what to do",
      isLong: true,
      cell: (row) => (
        <>
          <span class="told">{row.message}</span>
          <span class="advice">{meaning(row.reason).advice}</span>
        </>
      ),
    },
    { name: "Times", cell: (row) => count(row.count), isNumber: true },
    { name: "Conversation", cell: (row) => <Id id={row.conversation} />, isExtra: true },
    status.sees_all && { name: "From", cell: (row) => <code>{row.peer || "–"}</code>, isExtra: true },
  ];
  return (
    <Table
      title="Refused or failed"
      note="of late"
      rows={status.refusals}
      columns={columns}
      rowKey={(row) => `${row.conversation} ${row.peer} ${row.reason} ${row.message}`}
      empty="Nothing was refused."
    />
  );
}

export function Closed({ status }: { status: Status }) {
  const columns: Column<Conversation>[] = [
    { name: "Closed", cell: (row) => ago(status.time_s - row.closed_s) },
    { name: "Tenant", cell: (row) => <Name name={row.tenant} />, isHeader: true },
    { name: "Conversation", cell: (row) => <Id id={row.id} />, isExtra: true },
    { name: "Why", cell: (row) => row.why, isLong: true },
    { name: "Lasted", cell: (row) => span(row.closed_s - row.opened_s), isNumber: true },
    { name: "Turns", cell: (row) => count(row.num_turns), isNumber: true },
    { name: "Queue a turn", cell: queueOf, isNumber: true, isExtra: true },
    { name: "Compute a turn", cell: computeOf, isNumber: true, isExtra: true },
    { name: "Bytes", cell: (row) => bytes(row.num_bytes), isNumber: true, isExtra: true },
  ];
  return (
    <Table
      title="Closed lately"
      rows={closed(status.conversations)}
      columns={columns}
      rowKey={(row) => row.id}
      empty="No conversation has closed yet."
    />
  );
}
