// Load Subject Photos: uploads several photos at once, and says which files were taken.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { after, isLinked } from "./hooks.js";

const ACCEPTED = "image/jpeg,image/png,image/webp,image/bmp,image/gif";

/** Upload one file into ComfyUI's input folder; its name there, which is another one if the name was taken. */
async function upload(file) {
  const body = new FormData();
  body.append("image", file);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (answer.status !== 200) throw new Error(`${file.name}: ${answer.status} ${answer.statusText}`);
  const { name, subfolder } = await answer.json();
  return subfolder ? `${subfolder}/${name}` : name;
}

/** Upload files one after another and write their names into the list; a file that fails is named, the others stay. */
async function add(node, files) {
  if (isLinked(node, "photos")) {
    const detail = "The list of photos comes from outside this node; write the names there, or unlink it first.";
    app.extensionManager.toast.add({ severity: "warn", summary: "Nothing uploaded", detail, life: 10000 });
    return;
  }
  const list = node.widgets.find((w) => w.name === "photos");
  const failed = [];
  for (const file of files) {
    try {
      const name = await upload(file);
      const lines = list.value.split("\n").filter((line) => line.trim());
      if (!lines.includes(name)) list.value = [...lines, name].join("\n");
    } catch (error) {
      failed.push(error.message);
    }
  }
  list.callback?.(list.value);
  node.setDirtyCanvas(true, true);
  if (failed.length) {
    const detail = failed.join("; ");
    app.extensionManager.toast.add({ severity: "error", summary: "Upload failed", detail, life: 10000 });
  }
}

function chooseFiles(node) {
  const input = document.createElement("input");
  Object.assign(input, { type: "file", multiple: true, accept: ACCEPTED });
  input.onchange = () => add(node, [...input.files]);
  input.click();
}

/** A read-only line at the foot of the node. */
function addLine(node) {
  const element = document.createElement("div");
  element.style.cssText = "font:12px sans-serif;color:#ccc;overflow:auto;white-space:pre-line";
  const widget = node.addDOMWidget("taken", "infusion-taken", element, {
    serialize: false,
    getMinHeight: () => 48,
    getMaxHeight: () => 48,
  });
  widget.serialize = false;
  return (text) => (element.textContent = text);
}

function watch(node) {
  node.widgets.find((w) => w.name === "photos").options.getMinHeight = () => 80;
  const button = node.addWidget("button", "upload", "image", () => chooseFiles(node), { serialize: false });
  button.label = "upload photos";
  button.serialize = false;
  const show = addLine(node);
  after(node, "onExecuted", (output) => output?.text && show(output.text.join("\n")));
  node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
  node.onDragDrop = (event) => {
    const files = [...(event.dataTransfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (files.length) add(node, files);
    return files.length > 0;
  };
  node.setSize([Math.max(node.size[0], 320), Math.max(node.size[1], node.computeSize()[1])]);
}

app.registerExtension({
  name: "Infusion.Photos",
  nodeCreated(node) {
    if (node.comfyClass === "InfusionLoadPhotos") watch(node);
  },
});
