import { useEffect, useMemo, useState } from "preact/hooks";

import { Chart } from "./chart";
import { Fairness } from "./fairness";
import { Feed, type View } from "./feed";
import { delays, drawn, open, throughput, tiles } from "./figures";
import { clock, millis, percent, rate } from "./format";
import { Login } from "./login";
import type { Status } from "./status";
import { Closed, Refusals, Replicas, Talking, Tenants } from "./tables";

export function App() {
  const [, setView] = useState<View | null>(null);
  const feed = useMemo(() => new Feed(setView), []);
  const { view } = feed;
  useEffect(() => {
    feed.start();
    return () => feed.stop();
  }, []);
  const { status } = view;
  useEffect(() => {
    document.title = status === null ? "Preceptor console" : `${status.teacher} · Preceptor console`;
  }, [status?.teacher]);
  if (view.phase === "login") return <Login problem={view.problem} onToken={(token) => feed.login(token)} />;
  return (
    <>
      <Header view={view} feed={feed} />
      <main aria-busy={status === null}>
        {status === null ? <Waiting view={view} /> : <Everything view={view} status={status} />}
      </main>
    </>
  );
}

const PHASES: Record<View["phase"], string> = {
  starting: "Connecting",
  live: "Live",
  hidden: "Slow: this tab is hidden",
  away: "The service does not answer",
  login: "",
};

function Header({ view, feed }: { view: View; feed: Feed }) {
  const { status, phase } = view;
  return (
    <header>
      <div class="names">
        <h1>{status === null ? "Preceptor" : status.teacher}</h1>
        {status !== null && <span class="note">Preceptor {status.service_version}</span>}
      </div>
      <dl class="facts">
        {status !== null && (
          <>
            <div>
              <dt>Replicas</dt>
              <dd>{status.replicas.length} up</dd>
            </div>
            <div>
              <dt>You are</dt>
              <dd>
                {status.tenant || "anybody here"}
                {status.sees_all ? ", and see all" : ", and see your own"}
              </dd>
            </div>
          </>
        )}
      </dl>
      <div class={`state ${phase}`}>
        <span class="dot" aria-hidden="true" />
        <span role="status">
          {PHASES[phase]}
          {phase === "away" && `: ${view.problem}`}
        </span>
        {status !== null && <span class="note">{phase === "live" ? clock(status.time_s) : `as of ${clock(status.time_s)}`}</span>}
        {phase === "away" && (
          <button type="button" onClick={() => feed.hurry()}>
            Try now
          </button>
        )}
        {view.hasToken && (
          <button type="button" class="quiet" onClick={() => feed.logout()}>
            Sign out
          </button>
        )}
      </div>
    </header>
  );
}

function Waiting({ view }: { view: View }) {
  return (
    <p class="empty">
      {view.phase === "away"
        ? `It is tried again every ${view.retryInS} s. Is the service up, and this page's address right?`
        : "Asking the service how it is."}
    </p>
  );
}

function Everything({ view, status }: { view: View; status: Status }) {
  const { history } = view;
  const names = useMemo(() => drawn(history), [history]);
  const times = useMemo(() => history.map((sample) => sample.time_s), [history]);
  const tokens = useMemo(() => throughput(history, names), [history, names]);
  const waits = useMemo(() => delays(history, names), [history, names]);
  const busy = useMemo(() => [{ name: "busy", values: history.map((sample) => sample.busy_share) }], [history]);
  return (
    <>
      <Tiles view={view} status={status} />
      <div class="charts">
        <Chart
          title={status.sees_all ? "Throughput by tenant" : "Your throughput"}
          note="tokens a second"
          {...{ times, series: tokens, show: rate }}
          stacked
        />
        <Chart
          title="Queue delay"
          note={status.sees_all ? "mean wait of a turn, by tenant" : "mean wait of your turns"}
          {...{ times, series: waits, show: millis }}
        />
        <Fairness history={history} status={status} />
        <Chart
          title="Busy"
          note="share of time that the replicas compute, their mean"
          {...{ times, series: busy, show: percent }}
          max={1}
          filled
          colourOf={() => "accent"}
        />
      </div>
      <Talking view={view} status={status} />
      <Refusals status={status} />
      <Tenants status={status} />
      <Replicas status={status} />
      <Closed status={status} />
    </>
  );
}

function Tiles({ view, status }: { view: View; status: Status }) {
  const now = tiles(view, status);
  const whose = status.sees_all ? "" : "yours, ";
  const shown: [string, string, string][] = [
    ["Tokens/s", rate(now.tokensPerS), `${whose}last 10 s`],
    ["Turns/s", rate(now.turnsPerS), `${whose}last 10 s`],
    ["Queue p50", millis(now.p50Ms), `${whose}last minute`],
    ["Queue p99", millis(now.p99Ms), status.sees_all ? "slowest tenant's" : "yours, last minute"],
    ["Busy", percent(now.busy), "all replicas"],
    ["Rows cached", now.hits === null ? "–" : percent(now.hits), now.hitsOf],
    ["Talking", String(open(status.conversations).length), status.sees_all ? "conversations" : "your conversations"],
    ["Refused", String(now.refusalsPerMinute), `${whose}last minute`],
  ];
  return (
    <dl class="tiles">
      {shown.map(([name, value, note]) => (
        <div class={name === "Refused" && now.refusalsPerMinute > 0 ? "card tile alert" : "card tile"} key={name}>
          <dt>{name}</dt>
          <dd>
            <span class="figure">{value}</span>
            <span class="note">{note}</span>
          </dd>
        </div>
      ))}
    </dl>
  );
}
