// Runs once for each part of the page. Events: "select" when something with data-pick is chosen, "input" when a control
// of a spec changes. Everything that is shown was made on the server.
const chosen = (target) => target.closest?.("[data-pick]");

element.addEventListener("click", (event) => {
  const pick = chosen(event.target);
  if (pick && element.contains(pick)) trigger("select", { pick: pick.dataset.pick });
});
element.addEventListener("keydown", (event) => {
  const pick = event.target.matches?.("g[data-pick]") ? event.target : null;
  if (pick && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    trigger("select", { pick: pick.dataset.pick });
  }
});

// Controls of a spec

const written = (form, name) => {
  const fields = { before: form.dataset.before, most: Number(form.dataset.most), options: {}, changed: name };
  for (const each of form.querySelectorAll("[data-field]")) {
    fields[each.dataset.field] = each.type === "checkbox" ? each.checked : each.value;
  }
  for (const each of form.querySelectorAll("[data-option]")) {
    if (each.value !== each.dataset.default) fields.options[each.dataset.option] = each.value;
  }
  fields.open = Boolean(form.querySelector("details")?.open);
  return fields;
};
let focused = "";
element.addEventListener("input", (event) => {
  const control = event.target;
  const form = control.closest(".fv-controls");
  if (!form || control.dataset.field !== "tokens") return;
  form.querySelector("output").textContent = control.value;
  trigger("input", { fields: written(form, "tokens") });
});
element.addEventListener("change", (event) => {
  const control = event.target;
  const form = control.closest(".fv-controls");
  if (!form || control.dataset.field === "tokens") return;
  focused = control.dataset.field ? `[data-field="${control.dataset.field}"]` : `[data-option="${control.dataset.option}"]`;
  trigger("input", { fields: written(form, control.dataset.field || "option") });
});
watch("value", () => {
  if (focused && !document.activeElement?.closest?.("input, textarea, select, button")) {
    element.querySelector(focused)?.focus();
  }
  focused = "";
});

// Where a token went

const at = { figure: null, row: 0, column: 0 };
const cells = new WeakMap();
const read = (figure) => {
  if (!cells.has(figure)) cells.set(figure, JSON.parse(figure.dataset.tokens));
  return cells.get(figure);
};
const show = (figure, row, column) => {
  const view = figure.closest(".fv-kept-view");
  if (!cells.has(view)) cells.set(view, JSON.parse(view.dataset.into));
  const into = cells.get(view);
  const token = read(figure)[row][column];
  const target = into[token];
  let held = 0;
  let home = "";
  for (const each of view.querySelectorAll("figure[data-tokens]")) {
    const grid = read(each);
    const svg = each.querySelector("svg");
    svg.setAttribute("viewBox", `0 0 ${grid[0].length} ${grid.length}`);
    let path = "";
    let mark = "";
    grid.forEach((line, y) =>
      line.forEach((one, x) => {
        if (target >= 0 && into[one] === target) {
          path += `M${x} ${y}h1v1h-1z`;
          held += 1;
        }
        if (one === target) {
          mark = `<rect x="${x}" y="${y}" width="1" height="1"/>`;
          home = `row ${y + 1}, column ${x + 1}`;
        }
      }),
    );
    if (target < 0 && each === figure) mark = `<rect x="${column}" y="${row}" width="1" height="1"/>`;
    svg.innerHTML = (path ? `<path d="${path}"/>` : "") + mark;
  }
  const place = `Row ${row + 1}, column ${column + 1}`;
  let told = `${place}: dropped.`;
  if (target === token) told = held > 1 ? `${place}: kept; it holds ${held} tokens, itself among them.` : `${place}: kept as it is.`;
  else if (target >= 0) told = `${place}: merged into the token at ${home}, which holds ${held}.`;
  view.querySelector(".fv-told").textContent = told;
  Object.assign(at, { figure, row, column });
};
const clear = (view) => {
  for (const svg of view.querySelectorAll("svg")) svg.innerHTML = "";
  const told = view.querySelector(".fv-told");
  told.textContent = told.dataset.usual;
};
const pointed = (event) => {
  const figure = event.target.closest?.("figure[data-tokens]");
  const stack = figure?.querySelector(".fv-stack");
  if (!stack) return;
  const box = stack.getBoundingClientRect();
  const grid = read(figure);
  const row = Math.floor(((event.clientY - box.top) / box.height) * grid.length);
  const column = Math.floor(((event.clientX - box.left) / box.width) * grid[0].length);
  if (row >= 0 && row < grid.length && column >= 0 && column < grid[0].length) show(figure, row, column);
};
element.addEventListener("pointermove", pointed);
element.addEventListener("pointerdown", pointed);
element.addEventListener("pointerleave", () => {
  const view = element.querySelector(".fv-kept-view");
  if (view && at.figure && document.activeElement !== at.figure) clear(view);
});
element.addEventListener("keydown", (event) => {
  const figure = event.target.matches?.("figure[data-tokens]") ? event.target : null;
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!figure || !step) return;
  event.preventDefault();
  const grid = read(figure);
  const same = at.figure === figure;
  const row = Math.min(grid.length - 1, Math.max(0, same ? at.row + step[0] : 0));
  const column = Math.min(grid[0].length - 1, Math.max(0, same ? at.column + step[1] : 0));
  show(figure, row, column);
});
