// Typed columns as columns.py packs them.

const ARRAYS = { f4: Float32Array, f8: Float64Array, i2: Int16Array, i4: Int32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };

function unpacked(column) {
  const text = atob(column.data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new ARRAYS[column.kind](bytes.buffer);
}

// A row of texts from codes.
function unpackedNames(column) {
  const codes = unpacked(column.codes);
  return Array.from(codes, (code) => column.names[code]);
}

// A table's columns by name: numbers as typed arrays, texts as arrays, whatever is neither as it is.
function unpackedTable(table) {
  const found = {};
  for (const [name, column] of Object.entries(table)) {
    if (column && column.names) found[name] = unpackedNames(column);
    else if (column && column.kind) found[name] = unpacked(column);
    else found[name] = column;
  }
  return found;
}

function embedded(id) {
  const element = document.getElementById(id);
  return element ? JSON.parse(element.textContent) : null;
}
