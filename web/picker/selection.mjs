// Which concepts a text selects, and that text with one of them changed. The grammar is parse_selection's in
// seqlora/composition.py: `name`, `name: 0.8` or `*` (all), one a line, `#` for remarks; strength 0 leaves a concept out.
const LINE_END = /\r\n|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]/
const SPACE = '[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]' // Python's
const EDGES = new RegExp(`^${SPACE}+|${SPACE}+$`, 'g')
const SAID = new RegExp(`^(.*?)(${SPACE}*)$`, 's')
const GAP = new RegExp(`^${SPACE}*`)
const NUMBER = /^[+-]?(\d(_?\d)*(\.(\d(_?\d)*)?)?|\.\d(_?\d)*)(e[+-]?\d(_?\d)*)?$/i

// { on, all, problem }: name -> strength of all that are on, in the library's order; the strength of `*`; and the first line that
// is no selection, if any, as { what: 'strength' | 'unknown' | 'twice', line (from 1), name }. Such lines select nothing.
export function parse(text, known) {
  const named = new Map()
  let problem = null
  split(text).forEach(({ name, strength }, index) => {
    if (name === null) return
    const found = Number.isNaN(strength) ? 'strength'
      : name !== '*' && !known.includes(name) ? 'unknown'
      : named.has(name) ? 'twice'
      : null
    if (found) problem ??= { what: found, line: index + 1, name }
    else named.set(name, strength)
  })
  const all = named.get('*') ?? 0
  const on = known.map((name) => [name, named.get(name) ?? all]).filter(([, strength]) => strength)
  return { on: new Map(on), all, problem }
}

// The text in which `name` has this strength, 0 for off. No other line changes, and none at all if it has it already. A line
// that would say what holds without it goes, unless it bears a remark.
export function change(text, known, name, strength) {
  if ((parse(text, known).on.get(name) ?? 0) === strength && !isRepeated(text, name)) return text
  const lines = split(text)
  const { all } = parse(text, known)
  const own = lines.findIndex((line) => line.name === name)
  const needed = strength !== all
  const kept = lines.filter((line, index) => line.name !== name || (index === own && (needed || line.remark)))
  if (own >= 0 && kept.includes(lines[own])) lines[own].said = said(lines[own], name, strength)
  else if (needed) add(kept, name, strength)
  if (kept.length && kept.length < lines.length && kept.at(-1) !== lines.at(-1)) kept.at(-1).end = lines.at(-1).end
  return kept.map((line) => line.said + line.remark + line.end).join('')
}

function isRepeated(text, name) {
  return split(text).filter((line) => line.name === name).length > 1
}

// A line is said + remark + end; `name` is null where it selects nothing, `strength` is NaN where it is no number in -100 .. 100.
function split(text) {
  const lines = []
  while (text) {
    const [end] = LINE_END.exec(text) ?? ['']
    const whole = end ? text.slice(0, text.indexOf(end)) : text
    const hash = whole.indexOf('#')
    const line = { said: hash < 0 ? whole : whole.slice(0, hash), remark: hash < 0 ? '' : whole.slice(hash), end }
    lines.push({ ...line, ...read(line.said) })
    text = text.slice(whole.length + end.length)
  }
  return lines
}

function read(said) {
  const plain = trim(said.normalize('NFC'))
  if (!plain) return { name: null, strength: NaN }
  const colon = plain.lastIndexOf(':')
  if (colon < 0) return { name: plain, strength: 1 }
  return { name: trim(plain.slice(0, colon)), strength: number(plain.slice(colon + 1)) }
}

function number(written) {
  const plain = written.replace(/^[^\S\ufeff]+/, '').replace(/\p{Nd}/gu, digit) // a few spaces fewer than elsewhere, as in Python
  const value = NUMBER.test(plain) ? Number(plain.replaceAll('_', '')) : NaN
  return Math.abs(value) <= 100 ? value : NaN
}

// Every script's digits lie in a row from 0 to 9, and Python reads them all.
function digit(written) {
  let before = 0
  const code = written.codePointAt(0)
  while (/\p{Nd}/u.test(String.fromCodePoint(code - before - 1))) before += 1
  return String(before % 10)
}

// The line with another number, everything else of it as it was written.
function said(line, name, strength) {
  const [, before, after] = SAID.exec(line.said)
  const colon = before.lastIndexOf(':')
  if (colon < 0) return before + (strength === 1 ? '' : `: ${strength}`) + after
  const gap = GAP.exec(before.slice(colon + 1))[0]
  return `${before.slice(0, colon)}:${gap}${strength}${after}`
}

function add(lines, name, strength) {
  const end = lines.find((line) => line.end)?.end ?? '\n'
  const last = lines.at(-1)
  const line = { said: strength === 1 ? name : `${name}: ${strength}`, remark: '', end: last?.end ? end : '' }
  if (last && !last.end) last.end = end
  lines.push(line)
}

function trim(text) {
  return text.replace(EDGES, '')
}
