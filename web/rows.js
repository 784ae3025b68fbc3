// Load Concept Residuals: the page makes all rows anew when their number changes; what was chosen in them is put back.
// When it refreshes the lists of files (R), it leaves out rows; they get the list of the node for a single concept.
import { app } from "../../scripts/app.js";
import { after } from "./hooks.js";

const NODE = "InfusionLoadConcepts";
const rowsOf = (node) => node.widgets.filter((w) => w.name.startsWith("concepts."));
let files = null; // as of the last refresh; the page makes new rows from the list it was opened with

function list(rows) {
  if (!files) return;
  for (const row of rows) if (row.name.startsWith("concepts.concept_")) row.options.values = files;
}

function refresh(graph) {
  for (const node of graph?.nodes ?? []) {
    if (node.comfyClass === NODE) list(rowsOf(node));
    refresh(node.subgraph);
  }
}

function watch(node) {
  const chosen = {};
  const note = () => {
    for (const row of rowsOf(node)) chosen[row.name] = row.value;
  };
  const follow = () => {
    for (const row of rowsOf(node)) after(row, "callback", note);
  };
  after(node.widgets.find((w) => w.name === "concepts"), "callback", () => {
    list(rowsOf(node));
    for (const row of rowsOf(node)) if (row.name in chosen) row.value = chosen[row.name];
    note();
    follow();
  });
  after(node, "onConfigure", () => {
    note();
    follow();
  });
  follow();
}

app.registerExtension({
  name: "Infusion.Rows",
  nodeCreated(node) {
    if (node.comfyClass === NODE) watch(node);
  },
  refreshComboInNodes(definitions) {
    const [type, more] = definitions.InfusionLoadConcept.input.required.concept_name;
    files = Array.isArray(type) ? type : more.options;
    refresh(app.rootGraph ?? app.graph);
  },
});
