// The completions of the run: filtered, read one by one, and beside what the same prompt had at other steps. Those
// that the page does not hold are in parts beside it, scripts that call klentPart, and are read when they are needed.
(function () {
  const box = document.getElementById("browser");
  if (!box) return;
  const read = (id) => { const node = document.getElementById(id); return node ? JSON.parse(node.textContent) : null; };
  const data = read("samples-data");
  const [STEP, PROMPT, TEXT, REWARD, ADVANTAGE, FINISH, ENTROPY] = [0, 1, 2, 3, 4, 5, 6];
  const PAGE = 100;
  const form = box.querySelector("form");
  const list = document.getElementById("list"), one = document.getElementById("one");
  const count = document.getElementById("count"), further = document.getElementById("further");
  const others = document.getElementById("others");
  const AT_ONCE = 3e6;  // bytes that are read without being asked for, where some steps are wanted
  const known = [], prompts = [], lowered = [], promptPlace = new Map(), byPrompt = new Map(), groups = new Map();
  let rows = [], shown = [], drawn = 0, chosen = null;

  // Completions by their number in the run; rows of the same step and prompt are a group.
  const take = (part, numbers) => {
    const places = part.prompts.map((prompt) => {
      const name = JSON.stringify(prompt);
      if (!promptPlace.has(name)) {
        promptPlace.set(name, prompts.push(prompt) - 1);
        lowered.push((prompt[0] + "\n" + prompt[1]).toLowerCase());
        byPrompt.set(prompts.length - 1, []);
      }
      return promptPlace.get(name);
    });
    part.rows.forEach((row, index) => {
      const place = numbers(index);
      if (known[place]) return;
      row[PROMPT] = places[row[PROMPT]];
      known[place] = { row, place };
      byPrompt.get(row[PROMPT]).push(known[place]);
      const key = row[STEP] + " " + row[PROMPT];
      groups.set(key, (groups.get(key) || new Set()).add(row[REWARD]));
    });
    rows = known.filter(Boolean);
  };
  take(data, (index) => data.numbers ? data.numbers[index] : index);

  const hidden = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const seen = (text) => String(text).replace(hidden, (c) =>
    "\u27e8U+" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "\u27e9");
  const make = (tag, text, kind) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = seen(text);
    if (kind) node.className = kind;
    return node;
  };
  const fixed = (value) => value === null ? "–" : String(Number(value.toPrecision(3)));
  const reward = (row) => row[REWARD] === null ? "unscorable" : fixed(row[REWARD]);
  const option = (select, value, text) => { const node = make("option", text); node.value = value; select.append(node); };

  const finishes = new Set();
  const offer = () => rows.forEach(({ row }) => {
    if (!row[FINISH] || finishes.has(row[FINISH])) return;
    finishes.add(row[FINISH]);
    option(form.finish, row[FINISH], row[FINISH] === "length" ? "length (cut off)" : row[FINISH]);
  });
  data.findings.forEach((finding, place) => option(form.finding, place, finding[0]));
  form.finding.closest("label").hidden = !data.findings.length;

  // Groups whose rewards are all equal teach nothing: the finding of that name is about these.
  const meant = (row, finding) => {
    const [, onset, until, only] = finding;
    if (row[STEP] < onset || (until !== null && row[STEP] > until)) return false;
    if (only === "length") return row[FINISH] === "length";
    if (only === "unscorable") return row[REWARD] === null;
    if (only === "equal") return groups.get(row[STEP] + " " + row[PROMPT]).size === 1;
    return true;
  };
  const bound = (name) => form[name].value === "" ? null : Number(form[name].value);

  const filter = () => {
    const words = form.words.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const [first, last, least, most] = ["first", "last", "least", "most"].map(bound);
    const finding = form.finding.value === "" ? null : data.findings[Number(form.finding.value)];
    shown = rows.filter(({ row }) => {
      if (first !== null && row[STEP] < first || last !== null && row[STEP] > last) return false;
      if (least !== null && !(row[REWARD] !== null && row[REWARD] >= least)) return false;
      if (most !== null && !(row[REWARD] !== null && row[REWARD] <= most)) return false;
      if (form.finish.value && row[FINISH] !== form.finish.value) return false;
      if (finding && !meant(row, finding)) return false;
      if (!words.length) return true;
      const text = row[TEXT].toLowerCase();
      return words.every((word) => text.includes(word) || lowered[row[PROMPT]].includes(word));
    });
    tellOthers();
    count.textContent = shown.length === rows.length ? rows.length + " completions" : shown.length + " of " + rows.length + " completions";
    list.textContent = "";
    drawn = 0;
    more();
    if (!shown.includes(chosen)) read_one(shown[0] || null, false);
  };

  // Parts beside the page: [file, first number, first step, last step, bytes].
  const parts = (data.parts || []).map(([file, first, from, to, bytes]) => ({ file, first, from, to, bytes, state: "" }));
  const lacking = () => {
    const [first, last] = ["first", "last"].map(bound);
    return parts.filter((part) => part.state !== "read" && (first === null || part.to >= first) && (last === null || part.from <= last));
  };
  const size = (wanted) => wanted.reduce((sum, part) => sum + part.bytes, 0);
  const tellOthers = () => {
    const wanted = lacking();
    others.hidden = !wanted.length;
    if (parts.some((part) => part.state === "lost")) others.textContent = parts.find((part) => part.state === "lost").file + " is not beside this page; try again";
    else if (parts.some((part) => part.state === "asked")) others.textContent = "reading ... " + (size(wanted) / 1e6).toFixed(1) + " MB to go";
    else others.textContent = "Search the others too (" + (size(wanted) / 1e6).toFixed(1) + " MB)";
  };
  window.klentPart = (first, part) => take(part, (index) => first + index);
  const read_part = (part, then) => {
    const script = make("script");
    part.state = "asked";
    script.addEventListener("load", () => { part.state = "read"; then(); });
    script.addEventListener("error", () => { part.state = "lost"; tellOthers(); });
    script.src = part.file;
    document.head.append(script);
  };
  const read_all = (wanted, then) => {
    if (parts.some((part) => part.state === "asked")) return;
    const [next, ...rest] = wanted;
    if (!next) return then();
    read_part(next, () => { tellOthers(); read_all(rest, then); });
    tellOthers();
  };
  const again = () => { offer(); filter(); };

  const more = () => {
    shown.slice(drawn, drawn + PAGE).forEach((entry) => list.append(line(entry, prompts[entry.row[PROMPT]][0])));
    drawn = Math.min(shown.length, drawn + PAGE);
    further.hidden = drawn >= shown.length;
    further.textContent = "More (" + (shown.length - drawn) + ")";
  };

  const line = (entry, label) => {
    const { row } = entry, item = make("li"), button = make("button");
    button.type = "button";
    button.append(make("span", "step " + row[STEP], "at"), make("b", reward(row)), make("span", label, "id"), make("span", row[TEXT].slice(0, 160) || "∅", "text"));
    button.addEventListener("click", () => read_one(entry, false));
    item.dataset.place = entry.place;
    item.append(button);
    return item;
  };

  const read_one = (entry, follow) => {
    chosen = entry;
    one.textContent = "";
    list.querySelectorAll("[aria-current]").forEach((item) => item.removeAttribute("aria-current"));
    if (!entry) { one.append(make("p", "No completion is like that.", "muted")); return; }
    while (follow && drawn < shown.length && shown.indexOf(entry) >= drawn) more();
    const item = list.querySelector('[data-place="' + entry.place + '"]');
    if (item) {
      item.setAttribute("aria-current", "true");
      if (follow) item.scrollIntoView({ block: "nearest" });
    }
    const { row } = entry, [id, prompt] = prompts[row[PROMPT]];
    const link = make("a", "#", "permalink");
    link.href = "#completion-" + (entry.place + 1);
    link.setAttribute("aria-label", "link to this completion");
    const head = make("h3", "Step " + row[STEP] + ", " + id);
    head.append(link);
    const parts = ["reward " + reward(row)];
    if (row[ADVANTAGE] !== null) parts.push("advantage " + fixed(row[ADVANTAGE]));
    if (row[ENTROPY] !== null) parts.push("entropy " + fixed(row[ENTROPY]) + " nats per token");
    if (row[FINISH]) parts.push(row[FINISH] === "length" ? "cut off at the limit" : "ended by itself");
    one.append(head, make("p", parts.join(" · "), "muted"), make("pre", prompt, "asks"), make("pre", row[TEXT] || "∅", "says"));
    const alike = byPrompt.get(row[PROMPT]).sort((a, b) => a.place - b.place);
    if (alike.length > 1) {
      const steps = new Set(alike.map((other) => other.row[STEP])).size;
      one.append(make("h4", "The same prompt: " + alike.length + " completions of " + steps + (steps > 1 ? " steps" : " step")));
      const same = make("ol", undefined, "list same");
      alike.slice(0, PAGE).forEach((other) => {
        const item = line(other, "");
        if (other === entry) item.setAttribute("aria-current", "true");
        same.append(item);
      });
      one.append(same);
    }
  };

  const move = (by) => {
    const place = shown.indexOf(chosen) + by;
    if (place >= 0 && place < shown.length) read_one(shown[place], true);
  };

  form.addEventListener("input", filter);
  form.addEventListener("change", (event) => {
    if ((event.target === form.first || event.target === form.last) && size(lacking()) <= AT_ONCE) read_all(lacking(), again);
  });
  others.addEventListener("click", () => read_all(lacking(), again));
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  further.addEventListener("click", more);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest && event.target.closest("input, select, textarea");
    if (event.key === "Escape" && box.contains(event.target)) { form.reset(); event.target.blur(); }
    else if (typing) return;
    else if (event.key === "/") { event.preventDefault(); form.words.focus(); }
    else if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
  });

  // Tables for a spreadsheet.
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  const tables = {
    samples: () => [["step", "prompt_id", "prompt", "completion", "reward", "advantage", "finish", "entropy"],
      ...shown.map(({ row }) => [row[STEP], ...prompts[row[PROMPT]], row[TEXT], row[REWARD], row[ADVANTAGE], row[FINISH], row[ENTROPY]])],
    metrics: () => read("metrics-data"),
  };
  box.querySelectorAll("[data-table]").forEach((button) => button.addEventListener("click", () => {
    const name = button.dataset.table;
    const text = tables[name]().map((row) => row.map(cell).join(",")).join("\n") + "\n";
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name + ".csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }));

  // report.html#completion-12 opens that one.
  const asked = () => {
    const number = (location.hash.match(/^#completion-(\d+)$/) || [])[1];
    if (!number) return;
    const entry = known[number - 1], part = parts.filter((part) => part.first < number).pop();
    if (!entry && part && !part.state) return read_part(part, () => { again(); asked(); });
    if (!entry) return;
    read_one(entry, true);
    document.getElementById("browse").scrollIntoView();
  };
  addEventListener("hashchange", asked);
  box.hidden = false;
  again();
  asked();
})();
