// Sorts a table by the column whose heading is pressed: first from the largest (names from A), then the other way.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const rows = [...body.rows], key = (row) => row.cells[column].dataset.key;
    const numeric = rows.every((row) => key(row) === "" || !Number.isNaN(Number(key(row))));
    const before = head.ariaSort || head.getAttribute("aria-sort");
    const up = before ? before === "descending" : !numeric;
    const order = (a, b) => (numeric ? key(a) - key(b) : key(a).localeCompare(key(b))) * (up ? 1 : -1);
    const unknown = (row) => Number(key(row) === "");  // last, whichever way
    rows.sort((a, b) => unknown(a) - unknown(b) || order(a, b));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  }));
}
