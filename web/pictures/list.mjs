// The list of pictures as text, one a line: `mug.jpg` or `mug.jpg | a mug on a table`. Held against the core's reading of it.
const BAR = '|'

// Map of file -> caption; null where it lies in a file beside the picture.
export function parse(text) {
  const found = new Map()
  for (const line of text.split(/\r?\n/)) {
    const [name, ...rest] = line.split(BAR)
    if (name.trim()) found.set(name.trim(), rest.length ? rest.join(BAR).trim() : null)
  }
  return found
}

export function format(chosen) {
  return [...chosen].map(([file, caption]) => (caption === null ? file : `${file} ${BAR} ${caption}`.trim())).join('\n')
}
