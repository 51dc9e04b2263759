// Draws the plots. Their colours are names of CSS variables ("--policy-0", with "/0.4" for a share
// of opacity), so that style sheet, theme and print share one palette. A trace that belongs to a
// policy says so in `meta`, and is drawn while that policy's box above the plot is ticked.
"use strict";

const root = document.documentElement;
const zoomed = {}; // plot -> range of its horizontal axis, where the reader chose one
let plots = {};

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function colour(name) {
  const [variable, opacity] = name.split("/");
  const value = getComputedStyle(root).getPropertyValue(variable).trim();
  if (opacity === undefined) return value;
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(value.slice(at, at + 2), 16));
  return `rgba(${red}, ${green}, ${blue}, ${opacity})`;
}

function painted(value) {
  if (typeof value === "string") return value.startsWith("--") ? colour(value) : value;
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(painted);
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, painted(inner)]));
}

function styled(layout, width) {
  const axis = {
    gridcolor: "--grid", linecolor: "--rule", zeroline: false, automargin: true,
    tickfont: { color: "--ink-soft", size: 12 }, title: { font: { color: "--ink-soft", size: 13 } },
  };
  const merged = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "--ink" },
    hoverlabel: { bgcolor: "--card", bordercolor: "--rule", font: { color: "--ink", size: 12 }, align: "left" },
    // A finger scrolls the page; only a mouse zooms.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", width, ...layout,
  };
  for (const key of Object.keys(merged)) {
    if (!/^[xy]axis\d*$/.test(key)) continue;
    const own = merged[key];
    merged[key] = { ...axis, ...own, title: { ...axis.title, ...own.title } };
  }
  merged.legend = { font: { size: 12, color: "--ink" }, bgcolor: "rgba(0,0,0,0)", ...merged.legend };
  return merged;
}

function boxes(name) {
  return [...document.querySelectorAll(`.chips[data-plot="${name}"] input`)];
}

function drawOne(name) {
  const place = document.getElementById(`plot-${name}`);
  const hidden = new Set(boxes(name).filter((box) => !box.checked).map((box) => box.value));
  const shown = (trace) => !hidden.has(trace.meta);
  const plot = plots[name];
  const { data, layout } = plot.panels ? stacked(plot, shown) : { data: plot.data.filter(shown), layout: plot.layout };
  if (zoomed[name]) layout.xaxis = { ...layout.xaxis, range: zoomed[name] };
  Plotly.react(place, painted(data), painted(styled(layout, place.clientWidth)), {
    displaylogo: false,
    displayModeBar: false,
    scrollZoom: false,
  });
  if (plot.panels && !place.dataset.listening) {
    // A redraw, for another theme or another policy, keeps what the reader zoomed to.
    place.dataset.listening = "yes";
    place.on("plotly_relayout", (change) => {
      if ("xaxis.range[0]" in change) zoomed[name] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      if ("xaxis.autorange" in change) delete zoomed[name];
    });
    place.on("plotly_doubleclick", () => {
      delete zoomed[name];
      drawOne(name);
      return false;
    });
  }
}

function draw() {
  Object.keys(plots).forEach(drawOne);
}

// A link to some minutes of a plot: shows the policy that it is about, and zooms there.
function show(link) {
  const { plot, policy, from, to } = link.dataset;
  boxes(plot).filter((box) => box.value === policy).forEach((box) => { box.checked = true; });
  zoomed[plot] = [Number(from), Number(to)];
  drawOne(plot);
}

async function start() {
  plots = JSON.parse(await unpacked("plots"));
  const script = document.createElement("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
  draw();

  document.querySelectorAll(".chips").forEach((chips) => {
    const name = chips.dataset.plot;
    chips.addEventListener("change", () => drawOne(name));
    chips.addEventListener("click", ({ target }) => {
      if (target.tagName !== "BUTTON") return;
      const every = target.value === "all";
      boxes(name).forEach((box) => { box.checked = every || box.defaultChecked; });
      if (!every) delete zoomed[name];
      drawOne(name);
    });
  });
  document.querySelectorAll("a[data-plot]").forEach((link) => link.addEventListener("click", () => show(link)));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  // Paper is light and narrower than most screens, nothing on it can be opened (all is open but what
  // its headline says in brief), and it shows what everyone sees first rather than what this reader
  // happened to look at.
  let restore = () => {};
  window.addEventListener("beforeprint", () => {
    const closed = [...document.querySelectorAll("details:not([open], .brief)")];
    const ticked = Object.keys(plots).flatMap(boxes).map((box) => [box, box.checked]);
    const ranges = { ...zoomed };
    restore = () => {
      closed.forEach((details) => { details.open = false; });
      ticked.forEach(([box, checked]) => { box.checked = checked; });
      Object.assign(zoomed, ranges);
    };
    closed.forEach((details) => { details.open = true; });
    ticked.forEach(([box]) => { box.checked = box.defaultChecked; });
    Object.keys(zoomed).forEach((name) => { delete zoomed[name]; });
    root.dataset.theme = "print";
    document.querySelectorAll(".plot").forEach((place) => { place.style.width = "680px"; });
    draw();
  });
  window.addEventListener("afterprint", () => {
    restore();
    delete root.dataset.theme;
    document.querySelectorAll(".plot").forEach((place) => { place.style.width = ""; });
    draw();
  });
  root.dataset.drawn = "yes";
}

start().catch((error) => {
  document.querySelectorAll(".plot").forEach((place) => {
    place.textContent = `The plots cannot be drawn here (${error.message}); a browser of 2023 or later can.`;
  });
  throw error;
});
