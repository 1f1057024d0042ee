// Which concepts a text selects, and that text with one of them changed. The rules are those of parse_selection in
// seqlora/lora/compose.py: `name`, `name: 0.8`, `*` (all) or `auto` (what a
// prompt names, which is not known here), one a line, `#` for remarks; strength 0 leaves a concept out.
const SPACE = '[ \\t\\u00a0\\u3000]*'
const LINE_END = /(\r\n|\r|\n)/
// Space, name, colon, strength, space.
const LINE = new RegExp(`^(${SPACE})(.*?)(?:(${SPACE}[:\\uff1a]${SPACE})([^:\\uff1a]*?))?(${SPACE})$`, 's')
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i
const TAG = /^<lora:([^:>]+):?([^:>]*)/ // as in the prompts of other tools
const LARGEST = 100
const AUTO = 'auto'

// { on, all, auto, problem }: name -> strength of all that are on whatever a prompt names, in the library's order; the strengths of
// `*` and of `auto`; and the first line that is no selection, if any, as { what: 'tag' | 'strength' | 'unknown' | 'twice', line (from 1), name }. Such lines select nothing.
export function parse(text, known) {
  const named = new Map()
  let problem = /** @type {{ what: string, line: number, name: string } | null} */ (null)
  split(text, known).forEach(({ name, strength, wanted }, index) => {
    if (!name) return
    const found = wanted ? 'tag'
      : Number.isNaN(strength) ? 'strength'
      : ![...known, '*', AUTO].includes(name) ? 'unknown'
      : named.has(name) ? 'twice'
      : null
    if (found) problem ??= { what: found, line: index + 1, name: wanted || name }
    else named.set(name, strength)
  })
  const all = named.get('*') ?? 0
  const on = known.map((name) => [name, named.get(name) ?? all]).filter(([, strength]) => strength)
  const auto = known.includes(AUTO) ? 0 : named.get(AUTO) ?? 0
  return { on: new Map(on), all, auto, problem }
}

// The text in which `name` has this strength, 0 for off. No other line changes, and none at all if it has it already. A line
// that would say what holds without it goes, unless it bears a remark.
export function change(text, known, name, strength) {
  const lines = split(text, known)
  const { on, all } = parse(text, known)
  const own = lines.filter((line) => line.name === name)
  if ((on.get(name) ?? 0) === strength && own.length < 2) return text
  const isNeeded = strength !== all
  const kept = lines.filter((line) => line.name !== name || (line === own[0] && (isNeeded || line.remark)))
  if (kept.includes(own[0])) own[0].said = said(own[0], strength)
  else if (isNeeded) add(kept, name, strength)
  if (kept.length && kept.length < lines.length && kept.at(-1) !== lines.at(-1)) kept.at(-1).end = lines.at(-1).end
  return kept.map((line) => line.said + line.remark + line.end).join('')
}

// A line is said + remark + end.
function split(text, known) {
  const parts = text.split(LINE_END)
  const lines = []
  for (let i = 0; i < parts.length; i += 2) {
    const [whole, end = ''] = parts.slice(i, i + 2)
    const hash = whole.indexOf('#')
    const line = { said: hash < 0 ? whole : whole.slice(0, hash), remark: hash < 0 ? '' : whole.slice(hash), end }
    if (whole || end) lines.push({ ...line, ...read(line.said, known) })
  }
  return lines
}

// `name` is '' where nothing is selected, `strength` NaN where it is no number; `wanted` is what to write in place of a tag.
function read(text, known) {
  const [, , written, colon, number] = LINE.exec(text.normalize('NFC')) ?? []
  const tag = TAG.exec(written)
  const wanted = tag ? tag.slice(1).map((part) => part.trim()).filter(Boolean).join(': ') : ''
  const alike = known.filter((name) => name.toLowerCase() === written.toLowerCase())
  const name = alike.length === 1 && !known.includes(written) ? alike[0] : written
  const value = colon === undefined ? 1 : NUMBER.test(number) ? Number(number) : NaN
  return { name, wanted, strength: Math.abs(value) <= LARGEST ? value : NaN }
}

// The line with another number and the library's own spelling, everything else of it as it was written.
function said({ said: before, name }, strength) {
  const [, space, , colon, , rest] = LINE.exec(before) ?? []
  const number = colon ? colon + strength : strength === 1 ? '' : `: ${strength}`
  return space + name + number + rest
}

function add(lines, name, strength) {
  const end = lines.find((line) => line.end)?.end ?? '\n'
  const last = lines.at(-1)
  const line = { said: strength === 1 ? name : `${name}: ${strength}`, remark: '', end: last?.end ? end : '' }
  if (last && !last.end) last.end = end
  lines.push(line)
}
