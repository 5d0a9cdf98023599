// What the browser keeps, under names of this page's own.

/** Return what a storage holds under a name, or undefined: it may be blocked, or hold another's. */
function recall(storage, name) {
  try {
    return JSON.parse(window[storage].getItem(`fretsaw.${name}`)) ?? undefined;
  } catch {
    return undefined;
  }
}

/** Return whether a value could be kept; undefined takes it away. */
function keep(storage, name, value) {
  try {
    if (value === undefined) window[storage].removeItem(`fretsaw.${name}`);
    else window[storage].setItem(`fretsaw.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
