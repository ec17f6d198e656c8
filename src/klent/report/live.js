"use strict";
// Follows a run: asks every two seconds whether there is something new, and then loads the page again where it was.
(function () {
  const root = document.documentElement;
  const state = document.getElementById("live");
  const memory = "klent " + location.pathname;
  const details = () => Array.from(document.querySelectorAll("details"));

  const before = JSON.parse(sessionStorage.getItem(memory) || "null");
  sessionStorage.removeItem(memory);
  if (before) {
    if (before.theme) root.dataset.theme = before.theme;
    details().forEach((one, place) => { one.open = Boolean(before.open[place]); });
    addEventListener("load", () => scrollTo({ top: before.top, behavior: "instant" }));
  }

  const again = () => {
    const now = { theme: root.dataset.theme, open: details().map((one) => one.open), top: scrollY };
    sessionStorage.setItem(memory, JSON.stringify(now));
    location.reload();
  };
  const reading = () => document.hidden || !getSelection().isCollapsed;
  const ask = () => fetch("version", { cache: "no-store" }).then((answer) => answer.text()).then((version) => {
    if (version === root.dataset.version || reading()) setTimeout(ask, 2000);
    else again();
  }).catch(() => { state.textContent = "no longer served: report.html in the run's folder has it all"; state.className = "over"; });
  setTimeout(ask, 2000);
})();
