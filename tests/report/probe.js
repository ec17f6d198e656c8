// Measures a report as a reader would meet it, and writes what it found, as JSON, into an element of its own.
(() => {
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));
  const colour = (element, property) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    canvas.fillStyle = getComputedStyle(element)[property];
    canvas.fillRect(0, 0, 1, 1);
    return Array.from(canvas.getImageData(0, 0, 1, 1).data).slice(0, 3);
  };
  const found = {};

  found.width = innerWidth;
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  found.wide = all("body *")
    .filter((e) => !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > innerWidth + 1)
    .map((e) => e.tagName + "." + e.className);

  found.tiles = all(".stats dd").filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent);

  found.page = colour(document.body, "backgroundColor");
  found.ink = colour(document.body, "color");
  found.muted = colour(document.querySelector("figcaption"), "color");
  found.line = colour(document.querySelector('[id="reward.reward-mean"] path'), "stroke");
  found.figures = all("figure svg").map((svg) => [svg.dataset.figure, svg.getBoundingClientRect().width, svg.getBoundingClientRect().height]);
  found.smallest = Math.min(...all("figure svg").map((svg) =>
    parseFloat(getComputedStyle(svg.querySelector("text")).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width));

  const token = document.querySelector(".completions .t.up");
  const before = getComputedStyle(token, "::before");
  found.up = { content: before.content, height: parseFloat(before.height), below: getComputedStyle(token, "::after").content, above: parseFloat(before.bottom) - token.getBoundingClientRect().height };
  const down = document.querySelector(".completions .t.down");
  found.down = { content: getComputedStyle(down, "::after").content, striped: getComputedStyle(down, "::after").backgroundImage.includes("repeating"), under: parseFloat(getComputedStyle(down, "::after").top) - down.getBoundingClientRect().height };

  const title = token.title;
  token.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
  const tip = document.getElementById("tip");
  found.tip = { title, shown: !tip.hidden, text: tip.textContent };

  const svg = document.querySelector("#reward svg");
  const area = svg.getBoundingClientRect();
  const data = JSON.parse(document.getElementById("reward").dataset.chart);
  const third = area.left + data.x[2] / svg.viewBox.baseVal.width * area.width;
  const read = () => all("figure[data-chart]").map((f) => [f.querySelector(".at").textContent, f.querySelector(".keys b").textContent]);
  found.atRest = read();
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: third + 1, clientY: area.top + 20 }));
  found.pointed = read();
  found.crosses = all(".cross").map((line) => [line.getAttribute("visibility"), line.getAttribute("x1")]);
  found.third = data.x[2];
  svg.dispatchEvent(new PointerEvent("pointerleave"));
  found.left = read();

  const asked = all(".stage")[0].querySelectorAll(".asked");
  const buttons = all(".stage .picker")[0].querySelectorAll("button");
  const visible = () => Array.from(asked).map((a) => !a.hidden);
  found.first = visible();
  buttons[1].click();
  found.second = visible();

  const theme = () => [document.getElementById("theme").textContent, document.documentElement.dataset.theme];
  found.theme = theme();
  document.getElementById("theme").click();
  found.toggled = [...theme(), colour(document.body, "backgroundColor")];

  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(found);
  (window.frameElement ? parent.document : document).body.appendChild(out);
})();
