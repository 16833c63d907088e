// The one thing that a click does: show the candidates of a block. Text goes in as text, never as
// markup.
"use strict";
const SVG = "http://www.w3.org/2000/svg";
const make = (name, attributes = {}, text = "") => {
  const element = name.startsWith("svg:")
    ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
};
const short = (value, unit) => {
  if (unit === "ms") return value.toPrecision(3);
  if (value >= 1e6) return (value / 1e6).toPrecision(3) + " M";
  return value >= 1e3 ? (value / 1e3).toPrecision(3) + " k" : String(+value.toPrecision(3));
};

function table(choice, units) {
  const rows = make("table"), head = make("tr"), names = Object.keys(choice.costs);
  for (const [k, word] of ["candidate", "probability", "", ...names.map(n => n === "latency" ? "ms" : n)].entries())
    head.append(make("th", k ? {} : {class: "text"}, word));
  rows.append(make("thead"), make("tbody"));
  rows.tHead.append(head);
  choice.candidates.forEach((candidate, k) => {
    const row = make("tr", candidate === choice.chosen ? {class: "chosen"} : {});
    const cell = make("td", {class: "text"}, " " + candidate);
    cell.prepend(make("i", {class: `s${k % 8}`, style: "display:inline-block;width:.7rem;height:.7rem;border-radius:2px"}));
    const bar = make("td", {class: "text"});
    bar.append(make("span", {class: "bar", style: `width:${(90 * choice.probabilities[k]).toFixed(1)}px`}));
    row.append(cell, make("td", {}, choice.probabilities[k].toFixed(3)), bar);
    for (const name of names) row.append(make("td", {}, short(choice.costs[name][k], units[name])));
    rows.tBodies[0].append(row);
  });
  return rows;
}

function curves(choice, moments) {
  const svg = make("svg:svg", {class: "chart", viewBox: "0 0 520 200", role: "img", "aria-label": "probabilities by step"});
  const last = Math.max(1, moments[moments.length - 1] || 1);
  const x = step => 44 + 466 * step / last, y = p => 12 + 150 * (1 - p);
  for (const p of [0, 0.5, 1]) {
    svg.append(make("svg:line", {class: "grid", x1: 44, x2: 510, y1: y(p), y2: y(p)}));
    svg.append(make("svg:text", {class: "tick", x: 38, y: y(p) + 4, "text-anchor": "end"}, String(p)));
  }
  svg.append(make("svg:text", {class: "axis", x: 277, y: 190, "text-anchor": "middle"}, `probability by step (0 to ${last})`));
  choice.candidates.forEach((_, k) => {
    const points = choice.history.map((row, i) => `${x(moments[i]).toFixed(1)},${y(row[k]).toFixed(1)}`);
    svg.append(make("svg:polyline", {class: `line s${k % 8}`, points: points.join(" ")}));
  });
  return svg;
}

for (const run of document.querySelectorAll("[data-run]")) {
  const facts = JSON.parse(run.querySelector("script[type='application/json']").textContent);
  const panel = run.querySelector(".panel");
  const open = element => {
    const name = element.dataset.choice, choice = facts.choices[name];
    if (!choice) return;
    for (const other of run.querySelectorAll("[data-choice].open")) other.classList.remove("open");
    element.classList.add("open");
    const pair = make("div", {class: "pair"}), scroll = make("div", {class: "scroll"});
    scroll.append(table(choice, facts.units));
    pair.append(scroll);
    if (choice.history.length > 1) pair.append(curves(choice, facts.moments));
    panel.replaceChildren(make("h3", {}, `${name}: ${choice.chosen}`), pair);
  };
  const blocks = [...run.querySelectorAll("[data-choice]")];
  for (const block of blocks) {
    block.setAttribute("tabindex", "0");
    block.setAttribute("role", "button");
    block.addEventListener("click", () => open(block));
    block.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(block); }
    });
  }
  const widest = blocks.find(block => block.dataset.choice === facts.first) || blocks[0];
  if (widest && panel) open(widest);
}
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
