// A chart over time, which says in words and as a table what it draws.

import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";

import type { Series } from "./figures";
import { clock } from "./format";
import { colour, colourIndex, pattern } from "./palette";

const HEIGHT = 190;
const NARROW_HEIGHT = 160;
const NUM_ROWS = 10;

interface Props {
  title: string;
  note: string;
  times: number[];
  series: Series[];
  stacked?: boolean;
  filled?: boolean;
  max?: number;
  show: (value: number) => string;
  /** The name in the style sheet of a series' colour; by default the tenant's. */
  colourOf?: (name: string) => string;
}

const tenantColour = (name: string): string => `tenant-${colourIndex(name)}`;

export function Chart(props: Props) {
  const { title, note, times, series, show, colourOf = tenantColour } = props;
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [opened, setOpened] = useState(false);
  const theme = useTheme();
  const names = series.map((each) => each.name).join("\n");

  useEffect(() => {
    const element = place.current;
    if (element === null) return undefined;
    const made = new uPlot(options(props, colourOf, element.clientWidth), data(props), element);
    plot.current = made;
    const observer = new ResizeObserver(() => made.setSize(size(element.clientWidth)));
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
    };
  }, [names, theme]);
  useEffect(() => plot.current?.setData(data(props)), [times, series]);

  const last = series.map((each) => ({ name: each.name, value: each.values.findLast((value) => value !== null) }));
  const words = last.map(({ name, value }) => `${name} ${value == null ? "nothing" : show(value)}`).join(", ");
  return (
    <section class="card chart" aria-labelledby={id(title)}>
      <h2 id={id(title)}>
        {title} <span class="note">{note}</span>
      </h2>
      <div ref={place} class="plot" role="img" aria-label={`${title}, ${note}. Now: ${words || "nothing yet"}.`} />
      <ul class="legend" aria-hidden="true">
        {last.map(({ name, value }) => (
          <li key={name}>
            <Key name={colourOf(name)} dashes={props.stacked === true || props.filled === true ? [] : pattern(name)} /> {name}{" "}
            <span class="value">{value == null ? "–" : show(value)}</span>
          </li>
        ))}
      </ul>
      <details onToggle={(event) => setOpened(event.currentTarget.open)}>
        <summary>As a table</summary>
        {opened && <Rows {...props} />}
      </details>
    </section>
  );
}

function Key({ name, dashes }: { name: string; dashes: number[] }) {
  return (
    <svg class="key" viewBox="0 0 18 8" width="18" height="8">
      <line
        x1="0"
        x2="18"
        y1="4"
        y2="4"
        stroke={`var(--${name})`}
        stroke-width={dashes.length > 0 ? 3 : 6}
        stroke-dasharray={dashes.join(" ")}
      />
    </svg>
  );
}

function Rows({ title, times, series, show }: Props) {
  const step = Math.max(1, Math.ceil(times.length / NUM_ROWS));
  const picked = times.map((_, index) => index).filter((index) => (times.length - 1 - index) % step === 0);
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={`${title}, table`}>
      <table>
        <caption class="hidden">{title}</caption>
        <thead>
          <tr>
            <th scope="col">Time</th>
            {series.map(({ name }) => (
              <th scope="col" class="number" key={name}>
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {picked.reverse().map((index) => (
            <tr key={times[index]}>
              <th scope="row">{clock(times[index] ?? 0)}</th>
              {series.map(({ name, values }) => (
                <td class="number" key={name}>
                  {values[index] == null ? "–" : show(values[index] ?? 0)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const id = (title: string): string => title.toLowerCase().replace(/\W+/g, "-");

const size = (width: number): { width: number; height: number } => ({
  width,
  height: width < 480 ? NARROW_HEIGHT : HEIGHT,
});

function data({ times, series, stacked }: Props): uPlot.AlignedData {
  if (stacked !== true) return [times, ...series.map((each) => each.values)];
  const sums = times.map(() => 0);
  const stack = series.map((each) =>
    each.values.map((value, index) => (sums[index] = (sums[index] ?? 0) + (value ?? 0))),
  );
  return [times, ...stack];
}

function options(props: Props, colourOf: (name: string) => string, width: number): uPlot.Options {
  const { series, stacked, filled, show, max } = props;
  const grid = { stroke: colour("line"), width: 1 };
  const axis = { stroke: colour("muted"), grid, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  return {
    ...size(width),
    legend: { show: false },
    cursor: { sync: { key: "console" }, y: false, drag: { x: false, y: false } },
    padding: [8, 28, 0, 0],
    scales: { y: { range: (_, _low, high) => [0, max ?? (high > 0 ? high * 1.1 : 1)] } },
    axes: [
      { ...axis, size: 28, space: 80, values: (_u, splits, _i, _s, step) => splits.map((each) => timeOf(each, step)) },
      { ...axis, size: 56, space: 36, values: (_, splits) => splits.map((each) => show(each)) },
    ],
    series: [
      {},
      ...series.map(({ name }): uPlot.Series => {
        const stroke = colour(colourOf(name));
        const line: uPlot.Series = { label: name, stroke, width: 2, points: { show: false } };
        if (stacked === true) return { ...line, width: 1, fill: `${stroke}c8` };
        if (filled === true) return { ...line, fill: `${stroke}33` };
        return { ...line, dash: pattern(name), spanGaps: true };
      }),
    ],
    // Each fills down to the one below it; the lowest down to zero.
    ...(stacked === true
      ? { bands: series.slice(1).map((_, index) => ({ series: [index + 2, index + 1] as [number, number] })) }
      : {}),
  };
}

const HOUR_AND_MINUTE = "00:00".length;
const timeOf = (timeS: number, stepS: number): string =>
  stepS < 60 ? clock(timeS) : clock(timeS).slice(0, HOUR_AND_MINUTE);

/** Changes when the colours do, so that charts are drawn anew. */
function useTheme(): boolean {
  const [dark, setDark] = useState(() => matchMedia("(prefers-color-scheme: dark)").matches);
  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)");
    const change = (): void => setDark(query.matches);
    query.addEventListener("change", change);
    return () => query.removeEventListener("change", change);
  }, []);
  return dark;
}
