// Socket colours, seeds that stay, and what a concept file holds, shown on the nodes that load and save it.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { after, isLinked } from "./hooks.js";

const SEEDED = new Set([
  "APTTrain", "CheckpointAdvisor", "InfusionOverfitMetrics", "InfusionSnapshotGrid", "InfusionTrain", "InfusionTrainMany",
]);
const COLOURS = { INFUSION_CONCEPT: "#e0873e", INFUSION_MAPS: "#c2556b" };

/** A read-only panel at the foot of a node: a picture (or none) and a line of text. */
function addPanel(node) {
  const element = document.createElement("div");
  element.style.cssText = "display:flex;gap:8px;align-items:center;font:12px sans-serif;color:#ccc;overflow:hidden";
  const picture = document.createElement("img");
  picture.style.cssText = "height:64px;border-radius:4px;display:none";
  const text = document.createElement("span");
  element.append(picture, text);
  const widget = node.addDOMWidget("facts", "infusion-facts", element, {
    serialize: false,
    getMinHeight: () => 72,
    getMaxHeight: () => 72,
  });
  widget.serialize = false;
  node.setSize(node.computeSize().map((edge, axis) => Math.max(edge, node.size[axis])));
  return (line, image) => {
    text.textContent = line;
    picture.style.display = image ? "" : "none";
    if (image) picture.src = image;
  };
}

/** A line, and a picture if there is one, about a listed concept file; whatever goes wrong is the line. */
async function factsOf(name) {
  if (!name) return ["Put concept files into models/infusion, or train one."];
  try {
    const answer = await api.fetchApi(`/infusion/concept?name=${encodeURIComponent(name)}`);
    const facts = await answer.json().catch(() => null);
    if (facts?.error) return [String(facts.error)];
    if (!answer.ok || !facts?.word) return [`The server could not read ${name} (HTTP ${answer.status}); see its log.`];
    return [`"${facts.word}" · ${facts.base} · ${facts.steps} steps · layout ${facts.layout}`, facts.thumbnail];
  } catch {
    return [`The server does not answer about ${name}; see whether it is running.`];
  }
}

function watchLoader(node) {
  const show = addPanel(node);
  const dropdown = node.widgets.find((w) => w.name === "concept_name");
  const isChosenElsewhere = () => isLinked(node, "concept_name");
  let asked = 0;
  const refresh = async () => {
    const mine = ++asked;
    const facts = isChosenElsewhere() ? [""] : await factsOf(dropdown.value);
    if (mine === asked) show(...facts); // a late answer is about a file that is no longer chosen
  };
  showText(node, (text) => isChosenElsewhere() && show(text));
  after(node, "onConnectionsChange", refresh);
  after(dropdown, "callback", refresh);
  after(node, "onConfigure", refresh);
  refresh();
}

/** Show what a run says of a node. */
function showText(node, show) {
  after(node, "onExecuted", (output) => output?.text && show(output.text.join(" ")));
}

/** A new node's seed stays as it is from run to run, so that nothing is trained anew unasked. */
function keepSeed(node) {
  const control = node.widgets?.find((w) => w.name === "control_after_generate");
  if (control) control.value = "fixed";
}

/** Give a socket type a colour that a theme may change; themes write "" for types they do not know. */
function setColour(table, type, colour) {
  let current = colour;
  const set = (wanted) => (current = wanted || current);
  Object.defineProperty(table, type, { get: () => current, set, enumerable: true, configurable: true });
}

/** The same for nodes drawn by the page itself (Nodes 2.0), which read style variables; a theme's own value wins. */
function addStyle() {
  const style = document.createElement("style");
  const rules = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
  style.textContent = `:root { ${rules.join(" ")} }`;
  document.head.append(style);
}

app.registerExtension({
  name: "Infusion",
  setup() {
    addStyle();
    for (const [type, colour] of Object.entries(COLOURS)) {
      setColour(app.canvas.default_connection_color_byType, type, colour);
      setColour(globalThis.LGraphCanvas.link_type_colors, type, colour);
    }
  },
  nodeCreated(node) {
    if (SEEDED.has(node.comfyClass)) keepSeed(node);
    if (node.comfyClass === "InfusionLoadConcept") watchLoader(node);
    if (node.comfyClass === "InfusionSaveConcept") showText(node, addPanel(node));
  },
});
