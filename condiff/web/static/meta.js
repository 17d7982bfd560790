// The settings inside a downloaded file: a PNG's text chunk, or JSON.

const CHUNK = "condiff";
const FORMAT = "condiff samples 1";
const MOST = 64 * 2 ** 20;
const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

export async function readSettings(file) {
  if (file.size > MOST) throw new Error(`${file.name} is too large to be a file of samples.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const isPng = SIGNATURE.every((value, i) => bytes[i] === value);
  const text = isPng ? chunkOf(bytes) : new TextDecoder().decode(bytes);
  if (text === null) throw new Error(`${file.name} holds no settings: it wasn't downloaded here, or was saved again.`);
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error(`${file.name} is neither a PNG nor JSON that was downloaded here.`);
  }
  if (!data || data.format !== FORMAT || typeof data.settings !== "object" || data.settings === null)
    throw new Error(`${file.name} holds no settings of samples.`);
  return data.settings;
}

// The text of the chunk tEXt with our key; null without one.
function chunkOf(bytes) {
  const view = new DataView(bytes.buffer);
  const latin = new TextDecoder("latin1");
  let at = SIGNATURE.length;
  while (at + 12 <= bytes.length) {
    const length = view.getUint32(at);
    const kind = latin.decode(bytes.subarray(at + 4, at + 8));
    const content = bytes.subarray(at + 8, at + 8 + length);
    const end = content.indexOf(0);
    if (kind === "tEXt" && latin.decode(content.subarray(0, end)) === CHUNK) return latin.decode(content.subarray(end + 1));
    at += 12 + length;
  }
  return null;
}
