// Asks the service how it is, again and again: each second while somebody looks, rarely while the tab is hidden, and
// less and less often while the service is away.

import { type Sample, type Status, read } from "./status";

const PERIOD_S = 1;
const HIDDEN_PERIOD_S = 20;
const PATIENCE_S = 10;
const MAX_BACKOFF_S = 30;
const HISTORY_S = 600;
const MEMORY_S = 60;
const OVERLAP_S = 6;
const TOKEN = "preceptor.token";

export type Phase = "starting" | "live" | "hidden" | "away" | "login";

export interface View {
  phase: Phase;
  status: Status | null;
  history: Sample[];
  /** Earlier answers of the last minute, the oldest first: what grew since is what is going on. */
  earlier: Status[];
  /** What went wrong, for people. */
  problem: string;
  retryInS: number;
  hasToken: boolean;
}

const NOTHING: View = {
  phase: "starting",
  status: null,
  history: [],
  earlier: [],
  problem: "",
  retryInS: 0,
  hasToken: false,
};

export class Feed {
  view: View = { ...NOTHING, hasToken: sessionStorage.getItem(TOKEN) !== null };

  private timer: number | undefined;
  private asking: AbortController | null = null;
  private numFailures = 0;

  constructor(private readonly tell: (view: View) => void) {}

  start(): void {
    document.addEventListener("visibilitychange", this.onVisibility);
    void this.ask();
  }

  /** Whether the service wants a token and there is none: asking for its status would be in vain. */
  private async lacksToken(signal: AbortSignal): Promise<boolean> {
    if (this.view.status !== null || this.view.hasToken) return false;
    const response = await fetch("./api/access", { signal });
    const body: unknown = await response.json();
    return response.ok && (body as { needs_token?: unknown }).needs_token === true;
  }

  stop(): void {
    document.removeEventListener("visibilitychange", this.onVisibility);
    window.clearTimeout(this.timer);
    this.asking?.abort();
  }

  /** Asks at once; what was asked before is forgotten. */
  hurry(): void {
    window.clearTimeout(this.timer);
    this.asking?.abort();
    void this.ask();
  }

  login(token: string): void {
    sessionStorage.setItem(TOKEN, token.trim());
    this.change({ ...NOTHING, hasToken: true });
    this.hurry();
  }

  logout(): void {
    sessionStorage.removeItem(TOKEN);
    window.clearTimeout(this.timer);
    this.asking?.abort();
    this.change({ ...NOTHING, phase: "login" });
  }

  private readonly onVisibility = (): void => {
    if (this.view.phase === "login") return;
    if (document.hidden) {
      if (this.view.phase === "live") this.change({ phase: "hidden" });
    } else {
      this.hurry();
    }
  };

  private change(change: Partial<View>): void {
    this.view = { ...this.view, ...change };
    this.tell(this.view);
  }

  private later(seconds: number): void {
    window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => void this.ask(), seconds * 1000);
  }

  private async ask(): Promise<void> {
    const asking = new AbortController();
    this.asking = asking;
    const patience = window.setTimeout(() => asking.abort("patience"), PATIENCE_S * 1000);
    try {
      if (await this.lacksToken(asking.signal)) return this.refused("");
      const response = await fetch(`./api/status?history_s=${this.wantedS()}`, {
        headers: this.headers(),
        signal: asking.signal,
      });
      // An answer that breaks off is none: it would show a service where nothing is.
      const body: unknown = response.ok ? await response.json() : null;
      const why = response.status === 401 ? await told(response) : "";
      if (this.asking !== asking) return;
      if (response.ok) this.heard(read(body));
      else if (response.status === 401) this.refused(why);
      else this.failed(`it answered ${response.status}`);
    } catch {
      if (this.asking === asking && asking.signal.reason !== undefined && asking.signal.reason !== "patience") return;
      if (this.asking === asking) this.failed(asking.signal.aborted ? "it was too slow" : "it can't be reached");
    } finally {
      window.clearTimeout(patience);
    }
  }

  private headers(): Record<string, string> {
    const token = sessionStorage.getItem(TOKEN);
    return token === null ? {} : { authorization: `Bearer ${token}` };
  }

  private wantedS(): number {
    const { status, history } = this.view;
    const last = history[history.length - 1];
    if (status === null || last === undefined) return HISTORY_S;
    // By the service's clock; what passed since its last answer is small, or is asked for next time.
    const sinceS = status.time_s - last.time_s + (this.numFailures + 1) * OVERLAP_S;
    return this.view.phase === "live" ? Math.min(HISTORY_S, Math.ceil(sinceS)) : HISTORY_S;
  }

  private heard(status: Status): void {
    this.numFailures = 0;
    const earlier = [...this.view.earlier, status].filter((each) => each.time_s > status.time_s - MEMORY_S);
    this.change({
      phase: document.hidden ? "hidden" : "live",
      status,
      history: merged(this.view.history, status),
      earlier,
      problem: "",
      retryInS: 0,
    });
    this.later(document.hidden ? HIDDEN_PERIOD_S : PERIOD_S);
  }

  private refused(why: string): void {
    const problem = this.view.hasToken ? `This token is refused${why && `: ${why}`}.` : "";
    sessionStorage.removeItem(TOKEN);
    this.change({ ...NOTHING, phase: "login", problem });
  }

  private failed(problem: string): void {
    this.numFailures += 1;
    const retryInS = Math.min(MAX_BACKOFF_S, 2 ** (this.numFailures - 1));
    this.change({ phase: "away", problem, retryInS });
    this.later(retryInS);
  }
}

/** Why the service refuses a token, in its words; empty: it does not say, or something before it answered. */
async function told(response: Response): Promise<string> {
  const body: unknown = await response.json().catch(() => null);
  const why = (body as { error?: unknown } | null)?.error;
  return typeof why === "string" ? why.replace(/^authorization: /, "") : "";
}

function merged(history: Sample[], status: Status): Sample[] {
  const first = status.history[0]?.time_s ?? Infinity;
  return [...history.filter((each) => each.time_s < first), ...status.history].filter(
    (each) => each.time_s > status.time_s - HISTORY_S,
  );
}
