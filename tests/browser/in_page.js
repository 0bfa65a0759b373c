// What the tests need inside a page of JupyterLab (started with --expose-app-in-browser).
"use strict";
window.ctt = (() => {
  let opened = null;  // a link may open another tab of Lab
  const panel = () => opened;
  const kernel = () => panel().sessionContext.session?.kernel;
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const complaints = [];

  async function ready() {
    opened = window.jupyterapp.shell.currentWidget;
    await panel().context.ready;
    await panel().sessionContext.ready;
    window.jupyterapp.shell.collapseLeft();
    while (kernel()?.status !== "idle") await pause(50);
    kernel().iopubMessage.connect((_, message) => {
      const { content, header } = message;
      if (header.msg_type === "error") complaints.push(`${content.ename}: ${content.evalue}`);
      if (header.msg_type === "stream" && content.name === "stderr") complaints.push(content.text);
    });
  }

  // Whether another tab of Lab is in front, and back to the notebook.
  const isAway = () => window.jupyterapp.shell.currentWidget !== opened;
  function comeBack() {
    window.jupyterapp.shell.currentWidget.close();
    window.jupyterapp.shell.activateById(opened.id);
  }

  const shutDown = () => opened.sessionContext.shutdown();

  // ---- cells

  let runs = 0;
  async function runFrom(first) {
    runs += 1;
    try {
      panel().content.activeCellIndex = first;
      await window.jupyterapp.commands.execute("notebook:run-all-below");
    } finally {
      runs -= 1;
    }
  }

  // whether cells are being run, and which were not
  const running = () => [
    runs > 0 || kernel()?.status !== "idle",
    panel().content.widgets.flatMap((cell, i) => {
      const code = cell.model.type === "code" && cell.model.sharedModel.source.trim();
      return code && cell.model.executionCount === null ? [i] : [];
    }),
  ];

  const cells = () => panel().content.widgets.map((cell) => {
    const outputs = cell.model.type === "code" ? cell.model.outputs.toJSON() : [];
    const error = outputs.find((o) => o.output_type === "error");
    return {
      kind: cell.model.type,
      source: cell.model.sharedModel.source,
      tags: cell.model.getMetadata("tags") ?? [],
      count: cell.model.executionCount ?? null,
      error: error ? `${error.ename}: ${error.evalue}` : null,
    };
  });

  const output = (i) => panel().content.widgets[i].outputArea.node;

  async function value(expression) {
    const future = kernel().requestExecute(
      { code: "", silent: true, store_history: false, user_expressions: { it: expression } });
    const { it } = (await future.done).content.user_expressions;
    if (it.status !== "ok") throw new Error(`${expression}: ${it.ename}: ${it.evalue}`);
    return it.data["text/plain"];
  }

  // What is cut off at its right, or must be scrolled there. Fields are meant to hold longer texts,
  // and what takes the focus in order to be scrolled (tabindex) is meant to be.
  const MEANT = "input, select, textarea, .slider-container, .slider-container *, [tabindex]";
  function* cutOff(node) {
    for (const inner of [node, ...node.querySelectorAll("*")]) {
      if (inner.clientWidth === 0 || inner.scrollWidth <= inner.clientWidth + 1) continue;
      if (inner.matches(MEANT) || getComputedStyle(inner).overflowX === "visible") continue;
      yield inner;
    }
  }

  function tooWide(chosen, widgetsOnly) {
    const found = [];
    if (document.documentElement.scrollWidth > innerWidth) {
      found.push(`the page: ${document.documentElement.scrollWidth} in ${innerWidth} pixels`);
    }
    panel().content.widgets.forEach((cell, i) => {
      if (cell.model.type !== "code" || (chosen && !chosen.includes(i))) return;
      for (const node of cell.outputArea.node.querySelectorAll(".jp-OutputArea-output")) {
        if (widgetsOnly && !node.querySelector(".jupyter-widgets")) continue;
        for (const cut of cutOff(node)) {
          const text = cut.textContent.trim().slice(0, 30);
          const widths = `${cut.scrollWidth} in ${cut.clientWidth} pixels`;
          found.push(`cell ${i}: ${cut.tagName} “${text}”, ${widths}`);
        }
      }
    });
    return found;
  }

  // ---- controls of ipywidgets

  const KINDS = {
    slider: ".widget-slider .noUi-handle, .widget-hslider .noUi-handle",
    menu: ".widget-dropdown select",
    list: ".widget-select select, .widget-select-multiple select",
    tick: ".widget-checkbox input",
    number: ".widget-text input[type=number]",
    text: ".widget-text input[type=text], .widget-textarea textarea",
    choice: ".widget-radio, .widget-toggle-buttons",
    button: "button.widget-button, button.widget-toggle-button",
  };
  const ANY = Object.values(KINDS).join(", ");

  const controls = (i) => [...output(i).querySelectorAll(ANY)].filter((node) =>
    !node.closest(".widget-toggle-buttons, .widget-radio") || node.matches(KINDS.choice));

  // a control with its label; not all have the class jupyter-widgets
  const widgetOf = (node) => node.closest(".widget-inline-hbox, .widget-inline-vbox, button") ?? node;

  function told(node) {
    const kind = Object.keys(KINDS).find((key) => node.matches(KINDS[key]));
    const labels = [...widgetOf(node).querySelectorAll(".widget-label, .widget-label-basic")];
    const label = labels.map((each) => each.textContent).join("").replaceAll("\u200b", "");
    const name = (label || node.textContent || node.placeholder || node.title || "").trim();
    return { kind, name, disabled: Boolean(node.disabled) };
  }

  // What is seen of a node and of the values in its fields, without one control of it. Left out is
  // what changes by itself: names of ids, and classes, which follow the pointer and the focus.
  const LEFT_OUT = new Set(["id", "for", "class", "tabindex", "aria-labelledby", "title"]);
  function signature(node, without) {
    if (node === without) return "";
    if (node.nodeType === Node.TEXT_NODE) return node.nodeValue;
    if (node.nodeType !== Node.ELEMENT_NODE) return "";
    let own = `<${node.tagName}`;
    for (const { name, value } of node.attributes) {
      if (!LEFT_OUT.has(name)) own += ` ${name}=${value}`;
    }
    if ("value" in node) own += ` now=${node.value}`;
    if ("checked" in node) own += ` ticked=${node.checked}`;
    for (const child of node.childNodes) own += signature(child, without);
    return `${own}>`;
  }

  // As one who has just run the cell stands there: on the cell, not in its text.
  function enter(i) {
    const content = panel().content;
    content.activeCellIndex = i;
    content.mode = "command";
    content.widgets[i].node.focus();  // Lab leaves it in a control, where one has it
    complaints.length = 0;
  }

  // Watch what changes under a cell beside one control. Times are read a hundred times a second.
  let seen = null;
  function watch(i, which) {
    const without = widgetOf(controls(i)[which]);
    const now = () => signature(output(i), without);
    seen = { first: now(), last: null, events: [], changes: [], i };
    seen.last = seen.first;
    const listen = (event) => seen.events.push(performance.now());
    const types = ["keydown", "input", "change", "click", "pointermove"];
    for (const type of types) document.addEventListener(type, listen, true);
    const look = () => {
      const latest = now();
      if (latest !== seen.last) seen.changes.push(performance.now());
      seen.last = latest;
    };
    const timer = setInterval(look, 10);
    seen.stop = () => {
      look();
      clearInterval(timer);
      for (const type of types) document.removeEventListener(type, listen, true);
    };
  }

  // Wait for a change, and until nothing changes any more: whether something differs in the end,
  // and the milliseconds from the last action before the last change to that change.
  async function answer(patience) {
    const begin = performance.now();
    while (!seen.changes.length && performance.now() - begin < patience) await pause(10);
    for (;;) {
      const latest = Math.max(begin, ...seen.changes);
      const still = performance.now() - latest;
      if ((still > 300 && kernel().status === "idle") || still > patience + 30000) break;
      await pause(10);
    }
    seen.stop();
    const last = seen.changes.at(-1) ?? NaN;
    // an answer to one action may come in parts; the pointer's last move may follow it
    const acted = seen.events.filter((at) => at < last).at(-1);
    const changed = seen.last !== seen.first;
    return { changed, ms: changed ? last - acted : null };
  }

  const focused = (i) => controls(i).findIndex((node) => node.contains(document.activeElement));

  return { ready, shutDown, isAway, comeBack, runFrom, running, cells, output, value, tooWide, controls, told, enter, watch,
    answer, focused, complaints };
})();
