// Tables sort by a click on a header: once rising, twice falling. What has no value stays at the end.
for (const button of document.querySelectorAll("table.sorts thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const rise = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return falling ? -rise : rise;
    };
    body.append(...[...body.rows].sort(order));
  });
}
