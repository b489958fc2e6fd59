"use strict";
// Tables sort by a click, or Enter, on a column's name: first downwards for numbers, then upwards, then as they were.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = Array.from(body.rows);
  if (original.length < 2) continue;
  const units = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40, ms: 1e-3, s: 1, min: 60, h: 3600 };
  const number = (text) => {
    const found = /^([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)\s*([A-Za-z%]*)/.exec(text);
    return found ? Number(found[1].replaceAll(",", "")) * (units[found[2]] ?? 1) : NaN;
  };
  const columns = Array.from(table.tHead.rows[0].cells);
  columns.forEach((cell, column) => {
    const texts = original.map((row) => row.cells[column].textContent.trim());
    const known = texts.filter((text) => text !== "-");
    const numeric = column > 0 && known.length > 0 && known.every((text) => !Number.isNaN(number(text)));
    const compare = (a, b) => (numeric ? number(a) - number(b) : a.localeCompare(b, undefined, { numeric: true }));
    const orders = numeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    cell.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = orders[(orders.indexOf(cell.getAttribute("aria-sort")) + 1) % orders.length];
      for (const other of columns) other.setAttribute("aria-sort", "none");
      cell.setAttribute("aria-sort", order);
      const rows = original.map((row, i) => [row, texts[i]]);
      const sign = order === "descending" ? -1 : 1;
      // What was not scored stays at the end, whichever way.
      if (order !== "none")
        rows.sort(([, a], [, b]) => (a === "-") - (b === "-") || (a === "-" ? 0 : sign * compare(a, b)));
      body.append(...rows.map(([row]) => row));
    });
  });
}
