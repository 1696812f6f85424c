// Each tenant's share of computation against its weight. The bars are cells of a table, which says it in numbers too.

import { recent, shares } from "./figures";
import { each, millis, percent } from "./format";
import { colourIndex } from "./palette";
import type { Sample, Status } from "./status";

export function Fairness({ history, status }: { history: Sample[]; status: Status }) {
  return status.sees_all ? <AllShares history={history} status={status} /> : <OwnShare history={history} status={status} />;
}

function AllShares({ history, status }: { history: Sample[]; status: Status }) {
  const rows = shares(history, status);
  return (
    <section class="card chart fairness">
      <table>
        <caption>
          <h2>
            Fairness <span class="note">share of compute in the last minute; the mark is what the weight gives</span>
          </h2>
        </caption>
        <thead class={rows.length === 0 ? "hidden" : ""}>
          <tr>
            <th scope="col">Tenant</th>
            <th scope="col" class="wide">
              Share
            </th>
            <th scope="col" class="number">
              By weight
            </th>
            <th scope="col" class="number extra">
              Queue a turn
            </th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.name}>
              <th scope="row">{row.name}</th>
              <td class="wide">
                <Bar share={row.share} due={row.due} colour={`tenant-${colourIndex(row.name)}`} />
              </td>
              <td class="number">{percent(row.due)}</td>
              <td class="number extra">{millis(row.queueMs)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {rows.length === 0 ? (
        <p class="empty">Nothing was computed in the last minute.</p>
      ) : (
        <p class="hint">More than its mark is fair where the others asked for less. It is not where they wait.</p>
      )}
    </section>
  );
}

function OwnShare({ history, status }: { history: Sample[]; status: Status }) {
  const minute = recent(history, 60);
  const compute = sum(minute.compute);
  const own = each(compute, minute.seconds * Math.max(1, status.replicas.length));
  const samples = history.slice(-30);
  const all = each(
    samples.reduce((total, sample) => total + sample.busy_share, 0),
    samples.length,
  );
  return (
    <section class="card chart fairness">
      <table>
        <caption>
          <h2>
            Your share <span class="note">of the replicas' time in the last minute</span>
          </h2>
        </caption>
        <tbody>
          <tr>
            <th scope="row">Your team</th>
            <td class="wide">
              <Bar share={own} colour={`tenant-${colourIndex(status.tenant)}`} />
            </td>
          </tr>
          <tr>
            <th scope="row">Everybody</th>
            <td class="wide">
              <Bar share={all} colour="tenant-others" />
            </td>
          </tr>
          <tr>
            <th scope="row">A turn's wait</th>
            <td class="number">{millis(1000 * each(sum(minute.queue), minute.turns))}</td>
          </tr>
          <tr>
            <th scope="row">A turn's compute</th>
            <td class="number">{millis(1000 * each(compute, minute.turns))}</td>
          </tr>
        </tbody>
      </table>
      <p class="hint">While the service is full, each team gets its part by weight; what one leaves, others take.</p>
    </section>
  );
}

const sum = (values: Map<string, number>): number => [...values.values()].reduce((total, value) => total + value, 0);

function Bar({ share, due, colour }: { share: number; due?: number; colour: string }) {
  return (
    <span class="meter">
      <span class="track" aria-hidden="true">
        <span class={`bar ${colour}`} style={{ width: `${Math.min(100, share * 100)}%` }} />
        {due !== undefined && <span class="mark" style={{ left: `${Math.min(100, due * 100)}%` }} />}
      </span>
      <span class="value">{percent(share)}</span>
    </span>
  );
}
