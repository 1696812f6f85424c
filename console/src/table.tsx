// A table with a caption that says how much it holds; long ones show their beginning until asked for more.

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";

const NUM_FIRST = 10;

export interface Column<Row> {
  name: string;
  cell: (row: Row) => ComponentChildren;
  /** Numbers stand on the right. */
  isNumber?: boolean;
  /** Left out on narrow screens. */
  isExtra?: boolean;
  isHeader?: boolean;
  /** Takes a line of its own on narrow screens. */
  isLong?: boolean;
}

interface Props<Row> {
  title: string;
  note?: string;
  rows: Row[];
  columns: (Column<Row> | false)[];
  rowKey: (row: Row) => string;
  empty: string;
}

export function Table<Row>({ title, note, rows, columns, rowKey, empty }: Props<Row>) {
  const [all, setAll] = useState(false);
  const shown = all ? rows : rows.slice(0, NUM_FIRST);
  const kept = columns.filter((column) => column !== false);
  const style = (column: Column<Row>): string =>
    [column.isNumber && "number", column.isExtra && "extra", column.isLong && "long"].filter(Boolean).join(" ");
  const heading = (
    <>
      {title} {rows.length > 0 && <span class="badge">{rows.length}</span>}{" "}
      {note !== undefined && <span class="note">{note}</span>}
    </>
  );
  if (rows.length === 0) {
    return (
      <section class="card">
        <h2>{heading}</h2>
        <p class="empty">{empty}</p>
      </section>
    );
  }
  return (
    <section class="card">
      <div class="scroll" tabIndex={0} role="region" aria-label={title}>
        {/* The roles are a table's own: narrow screens lay its cells out otherwise, and browsers then forget them. */}
        <table role="table" class="records">
          <caption>
            <h2>{heading}</h2>
          </caption>
          <thead role="rowgroup">
            <tr role="row">
              {kept.map((column) => (
                <th scope="col" role="columnheader" class={style(column)} key={column.name}>
                  {column.name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody role="rowgroup">
            {shown.map((row) => (
              <tr role="row" key={rowKey(row)}>
                {kept.map((column) =>
                  column.isHeader ? (
                    <th scope="row" role="rowheader" class={style(column)} key={column.name}>
                      {column.cell(row)}
                    </th>
                  ) : (
                    <td role="cell" class={style(column)} data-name={column.name} key={column.name}>
                      {column.cell(row)}
                    </td>
                  ),
                )}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {rows.length > NUM_FIRST && (
        <button type="button" class="quiet" onClick={() => setAll(!all)} aria-expanded={all}>
          {all ? `Show the first ${NUM_FIRST}` : `Show all ${rows.length}`}
        </button>
      )}
    </section>
  );
}
