// Puts the panels of a timeline one below the other on one horizontal axis, so that zooming one
// moves all, leaving out what belongs to policies that are not shown.
"use strict";

const BETWEEN = 40; // pixels; the title of the lower panel stands there
const TOP = 24;
const BOTTOM = 50;

const PAGE = 640; // most pixels that a printed page, Letter as well as A4, has below heading and boxes

function stacked(plot, shown) {
  let panels = plot.panels
    .map((panel) => ({ ...panel, traces: panel.traces.filter(shown) }))
    .filter((panel) => panel.traces.length > 0);
  const between = BETWEEN * (panels.length - 1);
  const tall = panels.reduce((sum, panel) => sum + panel.height, 0);
  const scale = document.documentElement.dataset.theme === "print" ? Math.min(1, (PAGE - between) / tall) : 1;
  panels = panels.map((panel) => ({ ...panel, height: panel.height * scale }));
  const inner = tall * scale + between;
  const last = panels.length === 1 ? "" : String(panels.length);
  const layout = {
    height: inner + TOP + BOTTOM,
    xaxis: {
      title: { text: plot.x_title }, range: [0, plot.end], anchor: `y${last}`,
      showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid", spikecolor: "--rule",
    },
    shapes: [], annotations: [], hovermode: "x unified", showlegend: false,
    margin: { l: 56, r: 16, t: TOP, b: BOTTOM },
  };
  const data = [];
  let offset = 0;
  const most = Math.max(...panels.map((panel) => panel.most ?? 0));
  panels.forEach((panel, place) => {
    const suffix = place === 0 ? "" : String(place + 1);
    const high = 1 - offset / inner;
    offset += panel.height;
    const low = Math.max(0, 1 - offset / inner);
    offset += BETWEEN;
    layout[`yaxis${suffix}`] = { domain: [low, high], anchor: "x", nticks: 4, ...panel.axis, ...reaching(panel), ...counting(panel, most) };
    layout.annotations.push({
      text: panel.title, xref: "paper", yref: "paper", x: 0, xanchor: "left", y: high, yanchor: "bottom",
      showarrow: false, align: "left", font: { size: 13, color: "--ink" },
    });
    if (panel.objective !== null) {
      layout.shapes.push({
        type: "line", xref: "paper", x0: 0, x1: 1, yref: `y${suffix}`, y0: panel.objective, y1: panel.objective,
        line: { color: "--bad", width: 1.3, dash: "dash" },
      });
    }
    panel.traces.forEach((trace) => {
      const marks = panel.most !== null && trace.mode === "markers" ? { y: trace.y.map((share) => share * most) } : {};
      data.push({ type: "scatter", mode: "lines", ...trace, ...marks, yaxis: `y${suffix}` });
    });
  });
  return { data, layout };
}

// Over less than two decades 1, 2 and 5 of each: powers of ten alone would be one label or none.
function steps(least, most) {
  if (most / least >= 100) return {};
  const decades = [...Array(3).keys()].map((place) => 10 ** (Math.floor(Math.log10(least)) + place));
  const tickvals = decades.flatMap((decade) => [1, 2, 5].map((step) => Number((step * decade).toPrecision(1))));
  return { tickvals, ticktext: tickvals.map(String) };
}

// Counts of what is shown have one scale, with room for the marks above it.
function counting(panel, most) {
  return panel.most === null ? {} : { range: [0, 1.25 * Math.max(most, 1)] };
}

// A range that shows the objective as well as the lines.
function reaching(panel) {
  if (panel.objective === null) return {};
  const values = panel.traces.flatMap((trace) => trace.y).filter((value) => value !== null).concat(panel.objective);
  const most = values.reduce((a, b) => Math.max(a, b));
  if (panel.axis.type !== "log") return { range: [0, 1.1 * most] };
  const least = values.filter((value) => value > 0).reduce((a, b) => Math.min(a, b));
  return { range: [Math.log10(least / 1.3), Math.log10(1.3 * most)], ...steps(least / 1.3, 1.3 * most) };
}
