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

// Plain keys for the next sample and the one before: a link of the page, or the next sample below on it. They
// do nothing in what takes keys itself, such as a slider, a field, or a part that is scrolled.
{
  const STEPS = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 };
  document.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    if (event.target.closest("input, select, textarea, [role=region], [role=group], pre")) return;
    const link = document.querySelector(step > 0 ? "a[rel=next]" : "a[rel=prev]");
    if (link) {
      link.click();
      return;
    }
    const samples = [...document.querySelectorAll(".gallery .sample")].filter((each) => each.offsetParent);
    // From the sample that has the focus, or else from what is seen at the top.
    const at = samples.indexOf(event.target.closest(".sample"));
    const top = (each) => each.getBoundingClientRect().top;
    const seen = step > 0 ? samples.find((each) => top(each) > 0) : samples.findLast((each) => top(each) < 0);
    const found = at < 0 ? seen : samples[at + step];
    if (!found) return;
    event.preventDefault();
    found.tabIndex = -1;
    found.focus({ preventScroll: true });
    found.scrollIntoView();
  });
}
