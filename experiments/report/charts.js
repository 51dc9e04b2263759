// Draws the plots. Their colours are names of CSS variables ("--policy-0", with "/0.4" for a share
// of opacity), so that style sheet, theme and print share one palette.
"use strict";

const plots = JSON.parse(document.getElementById("plots").textContent);
const root = document.documentElement;

function colour(name) {
  const [variable, opacity] = name.split("/");
  const value = getComputedStyle(root).getPropertyValue(variable).trim();
  if (opacity === undefined) return value;
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(value.slice(at, at + 2), 16));
  return `rgba(${red}, ${green}, ${blue}, ${opacity})`;
}

function painted(value) {
  if (typeof value === "string") return value.startsWith("--") ? colour(value) : value;
  if (Array.isArray(value)) return value.map(painted);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, painted(inner)]));
  }
  return value;
}

function layout(plot, width) {
  const axis = {
    gridcolor: "--grid", linecolor: "--rule", zeroline: false, automargin: true,
    tickfont: { color: "--ink-soft", size: 12 }, title: { font: { color: "--ink-soft", size: 13 } },
  };
  const merged = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "--ink" },
    hoverlabel: { bgcolor: "--card", bordercolor: "--rule", font: { color: "--ink", size: 12 }, align: "left" },
    // A finger scrolls the page; only a mouse zooms.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", width, ...plot.layout,
  };
  for (const key of Object.keys(merged)) {
    if (!/^[xy]axis\d*$/.test(key)) continue;
    const own = merged[key];
    merged[key] = { ...axis, ...own, title: { ...axis.title, ...own.title } };
  }
  merged.legend = { font: { size: 12, color: "--ink" }, bgcolor: "rgba(0,0,0,0)", ...merged.legend };
  return merged;
}

function draw() {
  for (const [name, plot] of Object.entries(plots)) {
    const place = document.getElementById(`plot-${name}`);
    Plotly.react(place, painted(plot.data), painted(layout(plot, place.clientWidth)), {
      displaylogo: false,
      displayModeBar: false,
      scrollZoom: false,
    });
  }
}

draw();
let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  draw();
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// Paper is light and narrower than most screens, and nothing on it can be opened.
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((details) => { details.open = true; });
  root.dataset.theme = "print";
  document.querySelectorAll(".plot").forEach((place) => { place.style.width = "680px"; });
  draw();
});
window.addEventListener("afterprint", () => {
  closed.forEach((details) => { details.open = false; });
  delete root.dataset.theme;
  document.querySelectorAll(".plot").forEach((place) => { place.style.width = ""; });
  draw();
});
