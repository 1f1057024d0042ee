// The mention that is being typed in a prompt, by the rules of seqlora/prompt/grammar.py.
const TYPED = /(^|[^\p{L}\p{N}_@\\])@("?)([^"\n@:]{0,64})$/u
const PLAIN = /^[\p{L}\p{N}_-]+$/u

// { start, typed } of the mention that the caret stands in: where its sign is, and what of the name is there. null if in none.
export function mentionAt(text, caret) {
  const found = TYPED.exec(text.slice(0, caret))
  return found && { start: caret - found[2].length - found[3].length - 1, typed: found[3] }
}

// Concepts that `typed` may mean; those whose names begin with it first.
export function matching(concepts, typed) {
  const wanted = typed.toLowerCase()
  const at = ({ name, trigger }) => {
    const place = name.toLowerCase().indexOf(wanted)
    return place >= 0 ? place : trigger.toLowerCase().startsWith(wanted) ? name.length : -1
  }
  const found = concepts.map((concept) => [at(concept), concept]).filter(([place]) => place >= 0)
  return found.sort(([one], [other]) => Math.min(one, 1) - Math.min(other, 1)).map(([, concept]) => concept)
}

// As it is written in a prompt; `next` is the sign that follows.
export function mentionOf(name, next = '') {
  return PLAIN.test(name) ? `@${name}${/[\p{L}\p{N}_]/u.test(next) ? ' ' : ''}` : `@"${name}"`
}

// Whether the text names this concept, as it is written above.
export function isMentioned(text, name) {
  const said = mentionOf(name)
  return text.split(said).slice(1).some((rest) => said.endsWith('"') || !/^[\p{L}\p{N}_-]/u.test(rest))
}
