"use strict";

// Tables of the class "sortable": a button in each column's head sorts the rows of each part by that column.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th[data-column]").forEach((head) => {
    const label = head.querySelector("span");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label.textContent;
    label.replaceWith(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const part of table.tBodies) {
        const rows = [...part.rows].filter((row) => !row.classList.contains("band"));
        const value = (row) => row.cells[head.cellIndex].dataset.value;
        rows.sort((one, other) => {
          const [a, b] = [value(one), value(other)];
          if (a === "" || b === "") return (a === "") - (b === "");  // rows without a value come last
          return down ? b - a : a - b;
        });
        part.append(...rows);
      }
    });
  });
}
