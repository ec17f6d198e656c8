"use strict";
// Niceties only: the page says everything without this script.
(function () {
  const root = document.documentElement;
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));

  // Light and dark. The address may ask for one: report.html#dark
  const asked = location.hash.match(/^#(light|dark)$/);
  if (asked) root.dataset.theme = asked[1];
  const toggle = document.getElementById("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { toggle.textContent = dark() ? "Light" : "Dark"; };
  toggle.hidden = false;
  toggle.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();

  // The command to repeat the run.
  const copy = document.getElementById("copy");
  if (copy && navigator.clipboard) {
    copy.hidden = false;
    copy.addEventListener("click", () => navigator.clipboard.writeText(document.getElementById("command").textContent).then(() => {
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    }));
  }

  // One step under the pointer, in every figure at once.
  const charts = all("figure[data-chart]").map((figure) => {
    const data = JSON.parse(figure.dataset.chart);
    const svg = figure.querySelector("svg");
    const box = svg.viewBox.baseVal;
    const cross = document.createElementNS(svg.namespaceURI, "line");
    cross.setAttribute("class", "cross");
    cross.setAttribute("y1", 20);
    cross.setAttribute("y2", box.height - 18);
    cross.setAttribute("visibility", "hidden");
    svg.appendChild(cross);
    return { data, svg, box, cross, at: figure.querySelector(".at"), values: all(".keys b", figure) };
  });
  const show = (step) => charts.forEach((chart) => {
    const last = chart.data.steps.length - 1;
    const place = step === null ? last : chart.data.steps.indexOf(step);
    if (place < 0) return;
    chart.cross.setAttribute("visibility", step === null ? "hidden" : "visible");
    chart.cross.setAttribute("x1", chart.data.x[place]);
    chart.cross.setAttribute("x2", chart.data.x[place]);
    chart.at.textContent = "step " + chart.data.steps[place];
    chart.values.forEach((node, key) => { node.textContent = chart.data.values[key][place]; });
  });
  charts.forEach((chart) => {
    chart.svg.addEventListener("pointermove", (event) => {
      const area = chart.svg.getBoundingClientRect();
      const x = (event.clientX - area.left) / area.width * chart.box.width;
      let nearest = 0;
      chart.data.x.forEach((at, place) => { if (Math.abs(at - x) < Math.abs(chart.data.x[nearest] - x)) nearest = place; });
      show(chart.data.steps[nearest]);
    });
    chart.svg.addEventListener("pointerleave", () => show(null));
  });

  // A token's numbers. Without this script its title says the same.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.appendChild(tip);
  const hide = () => { tip.hidden = true; };
  document.addEventListener("pointerover", (event) => {
    const token = event.target.closest ? event.target.closest(".t[title], .t[data-tip]") : null;
    if (!token) return hide();
    if (token.title) { token.dataset.tip = token.title; token.removeAttribute("title"); }
    tip.textContent = token.dataset.tip.split(" · ").join("\n");
    tip.hidden = false;
    const area = token.getBoundingClientRect();
    const left = Math.min(area.left, root.clientWidth - tip.offsetWidth - 8);
    tip.style.left = Math.max(8, left) + scrollX + "px";
    tip.style.top = area.bottom + scrollY + 12 + "px";
  });
  document.addEventListener("scroll", hide, { passive: true });

  // One prompt of a step at a time.
  all(".stage").forEach((stage) => {
    const prompts = all(".asked", stage);
    const picker = stage.querySelector(".picker");
    if (!picker || prompts.length < 2) return;
    const choose = (chosen) => {
      prompts.forEach((prompt, place) => { prompt.hidden = place !== chosen; });
      all("button", picker).forEach((button, place) => button.setAttribute("aria-pressed", String(place === chosen)));
    };
    prompts.forEach((_, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = place + 1;
      button.setAttribute("aria-label", "prompt " + (place + 1));
      button.addEventListener("click", () => choose(place));
      picker.appendChild(button);
    });
    picker.hidden = false;
    choose(0);
    addEventListener("beforeprint", () => prompts.forEach((prompt) => { prompt.hidden = false; }));
  });
})();
