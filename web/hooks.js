// What the other scripts share: it adds nothing to the page by itself.

/** Do something whenever a method has run; `then` is given what the method was. */
export function after(object, method, then) {
  const before = object[method];
  object[method] = function (...values) {
    before?.apply(this, values);
    then(...values);
  };
}

/** Whether an input's value comes from outside of a node: from another one, or from the subgraph it is in. */
export const isLinked = (node, name) => node.inputs?.find((input) => input.name === name)?.link != null;
