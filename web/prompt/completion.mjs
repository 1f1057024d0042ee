// A list of concepts where `@` is typed in a Concept Prompt, or in a text that leads to one or to the prompt of Apply. The text is all that is changed.
import { make } from '../shared/dom.mjs'
import { allNodes, libraryOf } from '../shared/find_library.mjs'
import { APPLY, PROMPT } from '../shared/kinds.mjs'
import { openShelf } from '../shared/libraries.mjs'
import { matching, mentionAt, mentionOf } from './mention.mjs'

const MOST = 50 // that are shown; typing narrows them
const FARTHEST = 100 // nodes on the way to a Concept Prompt

export function completion({ app, api, t }) {
  const list = new List({ app, t, shelf: openShelf(api) })
  return {
    setup() {
      document.addEventListener('input', ({ target }) => list.follow(target), true)
      document.addEventListener('keydown', (event) => list.press(event), true)
      document.addEventListener('focusout', () => list.close(), true)
      document.addEventListener('wheel', ({ target }) => { if (!list.element.contains(/** @type {Node} */ (target))) list.close() }, true)
    }
  }
}

class List {
  #app
  #t
  #shelf
  #turn = 0
  #field = /** @type {HTMLTextAreaElement | null} */ (null)
  #found = []
  #chosen = 0

  constructor({ app, t, shelf }) {
    this.#app = app
    this.#t = t
    this.#shelf = shelf
    this.options = make('ul', { id: 'seqlora-mention-list', role: 'listbox' })
    this.status = make('p', { class: 'seqlora-unseen', role: 'status' })
    this.element = make('div', { class: 'seqlora-mention', hidden: true }, this.options, this.status)
  }

  async follow(field) {
    const turn = ++this.#turn
    const mention = field instanceof HTMLTextAreaElement && mentionAt(field.value, field.selectionStart)
    const node = mention && nodeOf(this.#app, field)
    const library = node && libraryBehind(this.#app, node)
    const told = library && await this.#shelf.library(library).catch(() => null)
    if (turn !== this.#turn) return
    const found = told ? matching(told.concepts, mention.typed) : []
    if (found.length) this.#open(field, library, found.slice(0, MOST))
    else this.close()
  }

  press(event) {
    if (event.target !== this.#field || event.isComposing) return
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    if (step) this.#choose((this.#chosen + step + this.#found.length) % this.#found.length)
    else if (event.key === 'Enter' || event.key === 'Tab') this.#insert(this.#found[this.#chosen].name)
    else if (event.key === 'Escape') this.close()
    else return
    event.preventDefault()
    event.stopImmediatePropagation()
  }

  close() {
    this.#turn++
    if (!this.#field) return
    for (const name of ['aria-autocomplete', 'aria-haspopup', 'aria-controls', 'aria-activedescendant']) this.#field.removeAttribute(name)
    this.#field = null
    this.element.hidden = true
  }

  #open(field, library, found) {
    if (!this.element.isConnected) document.body.append(this.element)
    const chosen = Math.max(0, found.indexOf(this.#field && this.#found[this.#chosen])) // typing on leaves the choice where it is
    this.#field = field
    this.#found = found
    this.options.setAttribute('aria-label', this.#t('prompt.list')) // words are there only now
    this.options.replaceChildren(...found.map((concept, i) => make('li', {
      id: `seqlora-mention-${i}`, role: 'option', 'aria-selected': 'false',
      onpointerdown: (event) => {
        event.preventDefault() // the field keeps the focus
        this.#insert(concept.name)
      }
    }, this.#shelf.picture(library, concept), make('span', {}, concept.name), make('small', {}, `${concept.trigger} ${concept.class_word}`.trim()))))
    const { left, bottom, width } = field.getBoundingClientRect()
    Object.assign(this.element.style, { left: `${left}px`, top: `${bottom + 4}px`, width: `${Math.max(220, Math.min(width, 360))}px` })
    this.element.hidden = false
    if (this.element.getBoundingClientRect().bottom > innerHeight) {
      this.element.style.top = `${Math.max(0, field.getBoundingClientRect().top - this.element.offsetHeight - 4)}px`
    }
    for (const [name, value] of [['autocomplete', 'list'], ['haspopup', 'listbox'], ['controls', this.options.id]]) field.setAttribute(`aria-${name}`, value)
    this.status.textContent = this.#t('prompt.found', { count: found.length })
    this.#choose(chosen)
  }

  #choose(index) {
    this.options.children[this.#chosen]?.setAttribute('aria-selected', 'false')
    this.#chosen = index
    const option = this.options.children[index]
    option.setAttribute('aria-selected', 'true')
    option.scrollIntoView({ block: 'nearest' })
    this.#field?.setAttribute('aria-activedescendant', option.id)
  }

  #insert(name) {
    const field = this.#field
    const mention = field && mentionAt(field.value, field.selectionStart)
    this.close()
    if (!field || !mention) return
    const end = field.value[field.selectionStart] === '"' ? field.selectionStart + 1 : field.selectionStart
    field.setRangeText(mentionOf(name, field.value[end]), mention.start, end, 'end')
    field.dispatchEvent(new Event('input', { bubbles: true })) // as if typed, in either renderer
    this.close()
  }
}

// The node that a text field belongs to: on the canvas, in Nodes 2.0, or, in the host's side panel, the one that is selected.
function nodeOf(app, field) {
  const drawn = field.closest('[data-node-id]')
  if (drawn) return app.canvas.graph.getNodeById(drawn.dataset.nodeId)
  const owner = allNodes(app).find(({ widgets }) => widgets?.some((widget) => widget.element === field))
  return owner ?? (field.closest('[data-testid="section-widgets-list"]') && [...app.canvas.selectedItems][0])
}

// The library of this Concept Prompt, or of the first prompt that the node leads to.
function libraryBehind(app, start) {
  if (start.type === PROMPT) return libraryOf(app, start)
  const seen = new Set([start])
  for (const node of seen) {
    if (seen.size > FARTHEST) return null
    for (const id of (node.outputs ?? []).flatMap(({ links }) => links ?? [])) {
      const link = node.graph.getLink(id)
      const next = node.graph.getNodeById(link?.target_id)
      if (!next) continue
      if (next.type === PROMPT || (next.type === APPLY && next.inputs[link.target_slot].name === 'prompt')) return libraryOf(app, next)
      seen.add(next)
    }
  }
  return null
}
