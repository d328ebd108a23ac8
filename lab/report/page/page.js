"use strict";
// Draws what is looked at: unpacks a part of the page when it is opened or comes into view, and plotly before the first
// figure. Texts from files become text nodes, or are escaped for plotly, which reads tags.

const byId = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Map();

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const parts = new Map();
function part(id) {
  if (!parts.has(id)) parts.set(id, unpack(id).then(JSON.parse));
  return parts.get(id);
}

let loading = null;
function library() {
  loading ??= unpack("library").then((source) => {
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
    return window.Plotly;
  });
  return loading;
}

// A colour is the name of one in page.css.
function coloured(value, style) {
  if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() || value : value;
  if (Array.isArray(value)) return value.some((item) => typeof item !== "number") ? value.map((item) => coloured(item, style)) : value;
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, coloured(item, style)]));
}

const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const wrapped = (text, width = 70) => {
  const lines = [""];
  for (const word of text.split(/\s+/)) {
    if (lines.at(-1).length + word.length > width) lines.push("");
    lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return plain(lines.slice(0, 8).join("\n")).replaceAll("\n", "<br>");
};
const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

const KINDS = [
  ["prepares", "--s0"], ["packets can notice", "--s1"], ["other threads", "--s2"], ["traffic", "--s3"], ["traffic without CPU", "--s4"],
  ["rollback", "--s5"],
];

// Bars in time as traces of plotly: one for each kind, a curve of counts above them, a line for every finding.
function bars(content, narrow) {
  const label = (row) => plain(short(content.rows[row], narrow ? 20 : 44)) + "\u200b".repeat(row);
  const data = KINDS.map(([name, colour], kind) => {
    const own = content.bars.filter((bar) => bar[3] === kind);
    return {
      type: "bar", orientation: "h", name, marker: { color: colour, line: { color: colour, width: kind === 3 ? 0 : 1 } },
      y: own.map((bar) => label(bar[0])), base: own.map((bar) => bar[1]), x: own.map((bar) => bar[2]),
      width: kind === 2 ? 0.25 : kind === 3 ? 0.35 : 0.62, hovertext: own.map((bar) => wrapped(bar[4])), hoverinfo: "text", textposition: "none",
    };
  }).filter((trace) => trace.x.length);
  const counts = content.counts.filter((each) => each[2].length);
  for (const [start, length, values] of counts) {
    data.push({
      type: "scatter", mode: "lines", name: "packets sent", line: { color: "--idle", width: 1, shape: "hvh" }, fill: "tozeroy", yaxis: "y2",
      x: values.map((_, at) => start + (at + 0.5) * length), y: values, hovertemplate: "%{y} sendings<extra></extra>",
    });
  }
  const top = counts.length ? 0.82 : 1;
  if (content.marks.length) {
    data.push({
      type: "scatter", mode: "markers", name: "finding", cliponaxis: false, marker: { color: "--bad", size: 11, symbol: "triangle-down" },
      yaxis: "y3", x: content.marks.map((mark) => mark[0]), y: content.marks.map(() => 1), hovertext: content.marks.map((mark) => wrapped(mark[1])), hoverinfo: "text",
    });
  }
  const layout = {
    barmode: "overlay", showlegend: false, hovermode: "closest", xaxis: { title: { text: plain(content.axis) }, zeroline: false, separatethousands: true, exponentformat: "none" },
    yaxis: { type: "category", categoryarray: content.rows.map((_, row) => label(row)), range: [content.rows.length - 0.5, -0.6], domain: [0, top], fixedrange: true },
    shapes: content.marks.map((mark) => ({ type: "line", x0: mark[0], x1: mark[0], y0: 0, y1: 1, yref: "paper", line: { color: "--bad", width: 1.5, dash: "dot" } })),
  };
  if (content.marks.length) layout.yaxis3 = { range: [0, 1], domain: [0, 1], overlaying: "y", visible: false, fixedrange: true };
  if (counts.length) layout.yaxis2 = { domain: [top + 0.03, 1], fixedrange: true, rangemode: "tozero", nticks: 2, showticklabels: false };
  return { data, layout };
}

async function draw(canvas, figure) {
  const plotly = await library();
  const narrow = canvas.clientWidth < 560;
  const style = getComputedStyle(document.documentElement);
  const made = figure.rows ? bars(figure, narrow) : structuredClone({ data: figure.data, layout: figure.layout });
  const axis = { gridcolor: "--line", linecolor: "--line", zerolinecolor: "--line", automargin: true };
  if (narrow && !figure.rows) shorten(made);
  const layout = {
    ...made.layout, height: figure.height, autosize: true, font: { family: style.fontFamily, size: narrow ? 11 : 12, color: "--ink" },
    paper_bgcolor: "--paper", plot_bgcolor: "--paper", margin: { l: 8, r: 12, t: figure.rows ? 18 : 12, b: 40 }, dragmode: narrow ? false : "zoom",
    hoverlabel: { bgcolor: "--soft", bordercolor: "--line", align: "left", font: { color: "--ink", family: style.fontFamily, size: 12 } },
    xaxis: { ...axis, ...made.layout.xaxis, title: { ...made.layout.xaxis.title, font: { size: 12, color: "--muted" } } }, yaxis: { ...axis, ticksuffix: " ", ...made.layout.yaxis },
  };
  if (layout.yaxis2) layout.yaxis2 = { ...axis, ...layout.yaxis2 };
  const config = { displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false };
  await plotly.react(canvas, coloured(made.data, style), coloured(layout, style), config);
  drawn.set(canvas, figure);
}

// Names lose what is in their middle: many begin alike. Rows of the same name would be one.
function shorten({ data, layout }) {
  const cuts = new Map();
  const cut = (name) => {
    if (typeof name !== "string") return name;
    if (!cuts.has(name)) cuts.set(name, (name.length > 22 ? `${name.slice(0, 6)}…${name.slice(-15)}` : name) + "\u200b".repeat(cuts.size));
    return cuts.get(name);
  };
  for (const trace of data) if (trace.y) trace.y = trace.y.map(cut);
  if (layout.yaxis?.categoryarray) layout.yaxis.categoryarray = layout.yaxis.categoryarray.map(cut);
}

function show(canvas, figure) {
  return Promise.resolve(figure).then((found) => draw(canvas, found)).catch((error) => {
    canvas.classList.add("failed");
    canvas.textContent = `This figure cannot be drawn by this browser (${error.message}); its numbers are in the tables.`;
  });
}

// Figures of sections are drawn when they come into view.
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    show(entry.target, part(entry.target.dataset.chunk));
  }
}, { rootMargin: "200px" });
for (const canvas of document.querySelectorAll(".canvas[data-chunk]")) seen.observe(canvas);

// Whoever prints has not scrolled through all of it. A browser does not wait for what a page still does when it prints:
// so what is not in a closed part is drawn before it is asked to.
async function printAll() {
  const open = [...document.querySelectorAll(".canvas[data-chunk]")].filter((canvas) => canvas.checkVisibility());
  await Promise.all(open.map((canvas) => {
    seen.unobserve(canvas);
    return drawn.has(canvas) ? null : show(canvas, part(canvas.dataset.chunk));
  }));
  window.print();
}
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.shiftKey || event.altKey || event.key.toLowerCase() !== "p") return;
  event.preventDefault();
  printAll();
});
byId("print")?.addEventListener("click", printAll);

// A scenario is unpacked when it is opened.
async function toggle(button, open = button.getAttribute("aria-expanded") !== "true") {
  button.setAttribute("aria-expanded", String(open));
  const row = byId(button.getAttribute("aria-controls"));
  row.hidden = !open;
  if (!open || row.dataset.filled) return;
  row.dataset.filled = "yes";
  const content = await part(button.dataset.open);
  const cell = row.firstElementChild;
  // Escaped when the page was written.
  cell.innerHTML = content.html;
  for (const canvas of cell.querySelectorAll(".canvas[data-figure]")) show(canvas, content.figures[Number(canvas.dataset.figure)]);
  const waterfall = cell.querySelector(".waterfall");
  if (waterfall && content.waterfalls.length) steps(cell, content, Number(waterfall.dataset.first));
}

function steps(cell, content, number) {
  const figure = content.waterfalls[number];
  const holder = cell.querySelector(".waterfall");
  holder.querySelector(".chosen").textContent = `Steps of reload ${number + 1}: ${figure.title}`;
  for (const button of cell.querySelectorAll("button.steps")) button.setAttribute("aria-pressed", String(Number(button.dataset.reload) === number));
  const rows = figure.bars.filter((bar) => bar[3] !== 2).map((bar) => {
    const row = document.createElement("tr");
    const values = [figure.rows[bar[0]], bar[1].toFixed(3), bar[2].toFixed(3)];
    values.forEach((value, place) => {
      const cell = document.createElement(place ? "td" : "th");
      if (place) cell.className = "n"; else cell.scope = "row";
      cell.textContent = value;
      row.append(cell);
    });
    return row;
  });
  holder.querySelector("tbody").replaceChildren(...rows);
  const canvas = holder.querySelector(".canvas");
  canvas.setAttribute("aria-label", `Steps of reload ${number + 1} in time, ${figure.rows.length} rows, ${figure.marks.length} findings; the table has the same`);
  return show(canvas, { ...figure, height: 90 + 24 * figure.rows.length });
}

document.addEventListener("click", (event) => {
  const opener = event.target.closest("button[data-open]");
  if (opener) toggle(opener);
  const chooser = event.target.closest("button.steps");
  if (chooser) choose(chooser, Number(chooser.dataset.reload));
  const link = event.target.closest('a[href^="#s-"]');
  if (link) openTarget(link.hash);
});

async function choose(inside, number) {
  const row = inside.closest("tr.opened");
  const content = await part(row.id.slice(2));
  if (number >= 0 && number < content.waterfalls.length) steps(row.firstElementChild, content, number);
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  if (form.classList.contains("pick")) choose(form, Number(form.querySelector("input").value) - 1);
});

// What a part of a drawn node is, in words: below the drawing, for whoever hovers or focuses it. Of a route, the
// interface that it leads out of is marked.
for (const kind of ["pointerover", "focusin"]) {
  document.addEventListener(kind, (event) => {
    const part = event.target.closest?.("[data-words]");
    if (part) part.closest(".drawn").querySelector(".told").textContent = part.dataset.words;
    const route = event.target.closest?.("tr[data-dev]") ?? document.activeElement?.closest("tr[data-dev]");
    for (const each of document.querySelectorAll(".part.lit")) each.classList.remove("lit");
    if (!route) return;
    for (const each of route.closest(".drawn").querySelectorAll(".part[data-name]")) {
      each.classList.toggle("lit", each.dataset.name === route.dataset.dev);
    }
  });
}

function filter(form) {
  const words = form.querySelector('input[type="search"]').value.toLowerCase().split(/\s+/).filter(Boolean);
  const outcomes = new Set([...form.querySelectorAll("input:checked")].map((box) => box.value));
  const rows = [...byId(form.dataset.table).querySelectorAll("tr.row")];
  let count = 0;
  for (const row of rows) {
    const fits = outcomes.has(row.dataset.outcome) && words.every((word) => row.dataset.text.includes(word));
    row.hidden = !fits;
    row.nextElementSibling.hidden = !fits || row.querySelector("button").getAttribute("aria-expanded") !== "true";
    count += fits;
  }
  form.querySelector(".shown").textContent = `${count} of ${rows.length} scenarios shown`;
}
for (const form of document.querySelectorAll("form.filter")) {
  form.addEventListener("input", () => filter(form));
  // The browser may have kept what was typed before the page was loaded again.
  filter(form);
}

async function openTarget(hash) {
  const button = document.querySelector(`button[data-open="${CSS.escape(hash.slice(1))}"]`);
  if (!button) return;
  const form = document.querySelector(`form[data-table="${button.closest("table").id}"]`);
  if (button.closest("tr").hidden) {
    form.reset();
    filter(form);
  }
  await toggle(button, true);
  button.scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
  button.focus({ preventScroll: true });
}
if (location.hash) openTarget(location.hash);

dark.addEventListener("change", () => {
  for (const [canvas, figure] of drawn) if (canvas.isConnected) show(canvas, figure);
});
