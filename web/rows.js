// Load Concept Residuals: the page makes all rows anew when their number changes; what was chosen in them is put back.
import { app } from "../../scripts/app.js";

const rowsOf = (node) => node.widgets.filter((w) => w.name.startsWith("concepts."));

function watch(node) {
  const chosen = {};
  const note = () => {
    for (const row of rowsOf(node)) chosen[row.name] = row.value;
  };
  const follow = () => {
    for (const row of rowsOf(node)) {
      const before = row.callback;
      row.callback = function (...values) {
        before?.apply(this, values);
        note();
      };
    }
  };
  const count = node.widgets.find((w) => w.name === "concepts");
  const before = count.callback;
  count.callback = function (...values) {
    before?.apply(this, values);
    for (const row of rowsOf(node)) if (row.name in chosen) row.value = chosen[row.name];
    note();
    follow();
  };
  const configure = node.onConfigure;
  node.onConfigure = function (...values) {
    configure?.apply(this, values);
    note();
    follow();
  };
  follow();
}

app.registerExtension({
  name: "Infusion.Rows",
  nodeCreated(node) {
    if (node.comfyClass === "InfusionLoadConcepts") watch(node);
  },
});
