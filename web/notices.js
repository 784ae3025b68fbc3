// What a run has to say: warnings and this pack's errors, beside the graph and on the node itself.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const LIFE = 20000; // milliseconds a notice stays beside the graph
const MARGIN = 8; // pixels round the panel
const KINDS = {
  warn: { sign: "⚠", colour: "#f2b84b" },
  error: { sign: "✖", colour: "#f07167" },
};
const panels = new Map(); // node to {widget, kind, lines, before, size}: the sizes without the panel and with it
let toasts = [];

/** The node of an execution id, "12:3" for node 3 in the subgraph of node 12, if it is of that type: a node of another
 * graph that is open meanwhile has the same id, but seldom the type too. */
function nodeAt(path, type) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(id) ?? null;
    graph = node?.subgraph;
  }
  return node?.comfyClass === type ? node : null;
}

function drawPanel({ sign, colour }, lines) {
  const element = document.createElement("div");
  element.className = "infusion-notice";
  element.style.cssText =
    `display:flex;gap:8px;box-sizing:border-box;padding:6px 8px;overflow:auto;border-left:3px solid ${colour};` +
    "border-radius:4px;background:rgba(0,0,0,.35);font:12px/16px sans-serif;color:#eee;user-select:text";
  const mark = document.createElement("span");
  mark.textContent = sign;
  mark.style.color = colour;
  const text = document.createElement("span");
  text.textContent = lines.join("\n");
  text.style.whiteSpace = "pre-wrap";
  element.append(mark, text);
  return element;
}

/** Put a notice at the foot of a node, below those it has. */
function pin(node, newest, text) {
  const there = panels.get(node);
  const lines = [...(there?.lines ?? []), text];
  const kind = there?.kind === "error" ? "error" : newest;
  unpin(node);
  const before = [...node.size];
  const perLine = Math.max(20, (node.size[0] - 60) / 6.2); // characters
  const rows = lines.reduce((sum, line) => sum + Math.ceil(line.length / perLine), 0);
  const tall = 16 * rows + 12 + 2 * MARGIN;
  const widget = node.addDOMWidget("infusion_notice", "infusion-notice", drawPanel(KINDS[kind], lines), {
    serialize: false,
    margin: MARGIN,
    getMinHeight: () => tall,
    getMaxHeight: () => tall,
  });
  widget.serialize = false;
  node.setSize([node.size[0], Math.max(before[1], node.computeSize()[1])]);
  panels.set(node, { widget, kind, lines, before, size: [...node.size] });
  node.setDirtyCanvas(true, true);
}

function unpin(node) {
  const panel = panels.get(node);
  if (!panel) return;
  panels.delete(node);
  if (node.graph?.getNodeById(node.id) !== node) return; // of a workflow that was closed: its number is another's now
  if (node.widgets?.includes(panel.widget)) node.removeWidget(panel.widget);
  const isOurs = node.size.every((edge, axis) => Math.abs(edge - panel.size[axis]) < 2); // the user has not resized it
  node.setSize([node.size[0], Math.max(isOurs ? panel.before[1] : node.size[1], node.computeSize()[1])]);
  node.setDirtyCanvas(true, true);
}

function tell(kind, path, type, text) {
  const node = nodeAt(path, type);
  const toast = { severity: kind, summary: node?.title ?? "Infusion", detail: text, life: LIFE };
  app.extensionManager.toast.add(toast);
  toasts.push(toast);
  if (node) pin(node, kind, text);
}

function clear() {
  [...panels.keys()].forEach(unpin);
  toasts.forEach((toast) => app.extensionManager.toast.remove(toast));
  toasts = [];
}

app.registerExtension({
  name: "Infusion.Notices",
  setup() {
    api.addEventListener("infusion.warning", ({ detail }) => tell("warn", detail.node, detail.type, detail.text));
    api.addEventListener("execution_error", ({ detail }) => {
      if (/(^|\.)InfusionError$/.test(detail.exception_type)) {
        tell("error", detail.node_id, detail.node_type, detail.exception_message.trim());
      }
    });
    api.addEventListener("execution_start", clear);
  },
});
