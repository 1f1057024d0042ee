// Libraries as the server tells of them, kept until it says that one has changed. One for all parts of the editor.
import { make } from './dom.mjs'

/** @type {Shelf | undefined} */
let shelf

// The server's own sentence, and the status it came with.
export class Refusal extends Error {
  constructor(sentence, status) {
    super(sentence)
    this.status = status
  }
}

export function openShelf(api) {
  shelf ??= new Shelf(api)
  return shelf
}

class Shelf {
  #api
  #kept = new Map() // path -> promise of the answer
  #listeners = new Set()

  constructor(api) {
    this.#api = api
    api.addEventListener('seqlora.library', () => this.reload())
    api.addEventListener('reconnected', () => this.reload()) // what was said meanwhile went unheard
  }

  // Calls `listener` whenever any library may have changed.
  onChange(listener) {
    this.#listeners.add(listener)
  }

  // What the server was not asked to change, nobody tells of: a folder copied in, the command line.
  reload() {
    this.#kept.clear()
    for (const listener of this.#listeners) listener()
  }

  libraries() {
    return this.#keep('/seqlora/libraries').then(({ libraries }) => libraries)
  }

  library(name) {
    return this.#keep(at(name))
  }

  report(name) {
    return this.#ask(`${at(name)}/report`)
  }

  reportPicture(name) {
    return this.#api.apiURL(`${at(name)}/report.png`)
  }

  rename(library, concept, to) {
    return this.#ask(`${at(library, concept)}/rename`, { to })
  }

  remove(library, concept) {
    return this.#ask(`${at(library, concept)}/remove`, {})
  }

  // Where the library can be had as one file, and what it is to be called.
  async pack(library) {
    const { name, view } = await this.#ask(`${at(library)}/pack`, {})
    return { name, url: this.#api.apiURL(`/view?${new URLSearchParams(view)}`) }
  }

  // Makes a library of such a file.
  unpack(file) {
    return this.#answer(this.#api.fetchApi('/seqlora/unpack', { method: 'POST', body: file }))
  }

  // The concept's picture; its initial where it has none.
  picture(library, concept) {
    const { name, thumbnail, created } = concept
    const initial = () => make('span', { class: 'seqlora-picture seqlora-initial', 'aria-hidden': 'true' }, [...name][0])
    if (!thumbnail) return initial()
    const src = this.#api.apiURL(`${at(library, name)}/thumbnail?of=${encodeURIComponent(created)}`) // anew when taught anew
    return make('img', {
      class: 'seqlora-picture', src, alt: '', draggable: 'false', loading: 'lazy',
      onerror() { this.replaceWith(initial()) }
    })
  }

  #keep(path) {
    if (!this.#kept.has(path)) {
      const answer = this.#ask(path)
      answer.catch(() => this.#kept.delete(path)) // asked again next time
      this.#kept.set(path, answer)
    }
    return this.#kept.get(path)
  }

  async #ask(path, body) {
    const options = body && { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) }
    return this.#answer(this.#api.fetchApi(path, options))
  }

  async #answer(asked) {
    const response = await asked
    const answer = await response.json().catch(() => ({}))
    if (!response.ok) throw new Refusal(answer.error ?? `${response.status} ${response.statusText}`, response.status)
    return answer
  }
}

function at(library, concept) {
  const path = `/seqlora/libraries/${encodeURIComponent(library)}`
  return concept === undefined ? path : `${path}/concepts/${encodeURIComponent(concept)}`
}
